"""What every training run shares: recipe, loop, checkpoints, signals, journal."""

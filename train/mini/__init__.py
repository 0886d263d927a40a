"""The miniature: a small stack of SD1.5's shape, trained on two CPU cores from a procedural world."""

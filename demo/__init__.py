"""make demo: the shipped workflows in a real ComfyUI."""

"""make demo: the miniature in a real ComfyUI, prompts x poses, and a look inside."""

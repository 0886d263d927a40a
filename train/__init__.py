"""Headless training and evaluation. Knows diffusers; knows nothing of ComfyUI."""

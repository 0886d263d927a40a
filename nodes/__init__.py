"""Thin ComfyUI nodes. host.py binds the guidance to ComfyUI; the other files hold one family of nodes each."""

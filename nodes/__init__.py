"""Thin ComfyUI nodes. host.py binds the guidance to ComfyUI, host_models.py builds its models; the other files hold one family of nodes each."""

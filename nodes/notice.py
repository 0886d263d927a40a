"""Telling the person at the canvas something that is not an error: in the log, and on the node where the host can."""

from __future__ import annotations

import logging

logger = logging.getLogger("kbdm")


def tell(text: str, node_id: str | None) -> None:
    """Say `text` once in the log and, on a host that shows progress text, on the node that runs."""
    logger.info("%s", text)
    try:
        from server import PromptServer
    except ImportError:  # comfyui 0.0.1 (June 2024), or no server at all
        return
    server = getattr(PromptServer, "instance", None)
    if node_id is not None and hasattr(server, "send_progress_text"):
        server.send_progress_text(text, node_id)

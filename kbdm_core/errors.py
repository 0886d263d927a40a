"""Errors for the person at the canvas: what was given, what is expected, what to do."""

from __future__ import annotations


class KBDMError(ValueError):
    """Base of every error that this pack raises on purpose."""


class FileFormatError(KBDMError):
    """A file of ours is unreadable, of another format or version, or a tensor in it is missing or misshapen."""


class MismatchError(KBDMError):
    """Two things that were connected do not belong together (model and adapter, adapter and knowledge base ...)."""


class PoseError(KBDMError):
    """A pose (JSON, POSE_KEYPOINT or picture) cannot be understood."""

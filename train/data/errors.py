"""What can be wrong with training data: with the source as a whole, or with one entry of it."""

from __future__ import annotations

from kbdm_core.errors import KBDMError


class DataError(KBDMError):
    """Training data cannot be used: a whole source (no such folder, a mapping file that is not JSON), or one file of it."""


class EntryError(DataError):
    """One entry of a source is no record; `kind` is one of PROBLEM_KINDS. The rest of the source is read."""

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind

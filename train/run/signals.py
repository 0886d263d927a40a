"""SIGINT and SIGTERM: noted when they come, obeyed at the next micro-step."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType


class Interrupted(Exception):  # noqa: N818 (no error: a request)
    """The person or the scheduler asked the run to stop. `signum` says how; the exit status is 128 + signum."""

    def __init__(self, signum: int):
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class Signals:
    """Context in which SIGINT and SIGTERM only set a flag, which `check` turns into Interrupted. A second SIGINT stops at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Signals:
        for signum in (signal.SIGINT, signal.SIGTERM):
            self._previous[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGINT and self.received == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signum

    def check(self) -> None:
        """Raise Interrupted if a signal has come. Called at every micro-step: between batches, chunks and pictures."""
        if self.received is not None:
            raise Interrupted(self.received)

"""The journal of a run: metrics.jsonl, one JSON object a line, and the same figures for TensorBoard."""

from __future__ import annotations

import json
import time
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from train.files import write_text

METRICS = "metrics.jsonl"


class Journal:
    """Appends figures to folder/metrics.jsonl and, if wanted, to TensorBoard event files. Lines beyond `step` of a stage are cut off:
    a resumed run writes them again."""

    def __init__(self, folder: Path, tensorboard: bool):
        self.path = folder / METRICS
        folder.mkdir(parents=True, exist_ok=True)
        self._writer = None
        if tensorboard:
            self._writer = SummaryWriter(str(folder / "tensorboard"))

    def rewind(self, stage: str, step: int) -> None:
        """Forget the lines of `stage` after `step`, and a line that a crash cut short."""
        if not self.path.exists():
            return
        kept = [line for line in self.path.read_text().splitlines() if _is_kept(line, stage, step)]
        write_text(self.path, "".join(line + "\n" for line in kept))

    def write(self, stage: str, step: int, figures: dict[str, float]) -> None:
        line = {"time": round(time.time(), 3), "stage": stage, "step": step, **figures}
        with open(self.path, "a") as opened:
            opened.write(json.dumps(line) + "\n")
        if self._writer is not None:
            for name, value in figures.items():
                self._writer.add_scalar(f"{stage}/{name}", value, step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def _is_kept(line: str, stage: str, step: int) -> bool:
    try:
        entry = json.loads(line)
    except ValueError:
        return False
    return entry["stage"] != stage or entry["step"] <= step

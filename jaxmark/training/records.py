"""The log of a run: `logs/metrics.jsonl`, one JSON object a line, and TensorBoard if asked for."""

import json
import os
from pathlib import Path
from typing import Any, TextIO

from jaxmark.core.errors import InputError


class Records:
    """Appends records; lines later than the step a run resumes from are dropped first.

    With `write` False, of a process that is not the primary, nothing is written.
    """

    def __init__(
        self, workdir: Path, *, resume_step: int, tensorboard: bool = False, write: bool = True
    ):
        self.path = workdir / "logs" / "metrics.jsonl"
        # What the run had written when it was stopped, up to the step it resumes from.
        self.past = kept = [r for r in read_records(self.path) if r["step"] <= resume_step]
        self._board: Any = None
        self._file: TextIO | None = None
        if not write:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(r) + "\n" for r in kept))
        os.replace(temporary, self.path)
        self._file = self.path.open("a")
        if tensorboard:
            try:
                from tensorboardX import SummaryWriter
            except ImportError as error:
                raise InputError(
                    "config.train.tensorboard",
                    "needs the extra: pip install 'jaxmark[tensorboard]'",
                ) from error
            self._board = SummaryWriter(str(workdir / "logs" / "tensorboard"))

    def write(self, kind: str, phase: str, step: int, **values: float | str) -> None:
        """One record; `kind` is "train", "validation" or "warning"."""
        if self._file is None:
            return
        self._file.write(json.dumps({"kind": kind, "phase": phase, "step": step, **values}) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                if isinstance(value, str):
                    self._board.add_text(f"{kind}/{name}", value, step)
                    continue
                self._board.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        """Flush and close."""
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()


def read_records(path: Path) -> list[dict[str, Any]]:
    """Records of a training log, one JSON object a line; none where there is no log.

    A run that was killed while it wrote leaves half a line at the end, which is passed over.
    Raises InputError for any other line that is no record.
    """
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            int(record["step"])
            str(record["kind"])
        except (ValueError, TypeError, KeyError) as error:
            if number == len(lines):
                break
            raise InputError(path, f"line {number} is not a record of a log") from error
        records.append(record)
    return records

"""The log of a run: JSON lines in `logs/`, and TensorBoard if asked for.

`metrics.jsonl` has losses, errors and warnings; it is the same to the last bit however often a run
was stopped. `speed.jsonl` has the pace, which depends on the machine.
"""

import json
import os
from pathlib import Path
from typing import Any, BinaryIO

from jaxmark.system.errors import InputError
from jaxmark.system.files import naming, write_text_atomic

METRICS, SPEED = "logs/metrics.jsonl", "logs/speed.jsonl"


class Lines:
    """A file to append records to; at the start it drops records after `resume_step`."""

    def __init__(self, path: Path, resume_step: int, write: bool):
        # Records of the earlier run, up to the step from which this one continues.
        self.past = [r for r in read_records(path) if r["step"] <= resume_step]
        self._path = path
        self._file: BinaryIO | None = None
        if write:
            write_text_atomic(path, "".join(json.dumps(r) + "\n" for r in self.past))
            self._file = path.open("ab", buffering=0)

    def write(self, record: dict[str, Any]) -> None:
        """Write one line, without a buffer."""
        if self._file is not None:
            with naming(self._path, self._path):
                self._file.write(json.dumps(record).encode() + b"\n")

    def sync(self) -> None:
        """Return when all lines are on the disk."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


class Records:
    """Appends records of a run that continues from `resume_step`.

    Processes other than the primary pass `write=False`, and write nothing.
    """

    def __init__(
        self, workdir: Path, *, resume_step: int, tensorboard: bool = False, write: bool = True
    ):
        self._metrics = Lines(workdir / METRICS, resume_step, write)
        self._speed = Lines(workdir / SPEED, resume_step, write)
        self.past = self._metrics.past
        self._board: Any = None
        if tensorboard and write:
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
        self._metrics.write({"kind": kind, "phase": phase, "step": step, **values})
        self._show(kind, step, values)

    def write_speed(self, phase: str, step: int, volumes_per_s: float) -> None:
        """Write the pace of the steps since the last record."""
        values = {"volumes_per_s": volumes_per_s}
        self._speed.write({"kind": "speed", "phase": phase, "step": step, **values})
        self._show("speed", step, values)

    def sync(self) -> None:
        """Return when all metrics are on the disk."""
        self._metrics.sync()

    def close(self) -> None:
        """Flush and close."""
        self._metrics.close()
        self._speed.close()
        if self._board is not None:
            self._board.close()

    def _show(self, kind: str, step: int, values: dict[str, Any]) -> None:
        if self._board is None:
            return
        for name, value in values.items():
            if isinstance(value, str):
                self._board.add_text(f"{kind}/{name}", value, step)
            else:
                self._board.add_scalar(f"{kind}/{name}", value, step)


def read_records(path: Path) -> list[dict[str, Any]]:
    """Records of a training log, one JSON object a line; none where there is no log.

    A killed run may leave half a line at the end, which is skipped. Raises InputError for any other
    line that is no record.
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

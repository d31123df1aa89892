"""Rows of a table: train each in a separate process, then compare them.

Evaluated rows are not run again. A row that was interrupted or out of time continues with the same
call. This module knows nothing of the rows' methods.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from jaxmark.system.errors import InputError
from jaxmark.system.interrupts import EXIT_CODE

if TYPE_CHECKING:
    from jaxmark.results.compare import Row as Compared

# The program that trains a row: arguments of Python, before the row's arguments.
JAXMARK = ("-m", "jaxmark.main")
# Exit code of a process that was stopped before its end; jaxmark's is the same.
CUT_OFF = EXIT_CODE
# Seconds between SIGTERM and SIGKILL.
GRACE_S = 45.0
# Least seconds of a process, even if the time is over.
LEAST_S = 1.0
# Lines of a log that are shown when its process has ended.
SHOWN_LINES = 40


@dataclass(frozen=True)
class Row:
    """An experiment, trained once with each of its seeds."""

    name: str
    # FILE:PRESET, as --config takes it.
    config: str
    # Seed -> work dir.
    homes: Mapping[str, Path]
    # Further arguments of `jaxmark.main`, as in "--config.train.batch=4".
    overrides: Sequence[str] = ()
    # The program that trains it, with the arguments of `jaxmark.main`; empty: `jaxmark.main`.
    program: Sequence[str] = ()


@dataclass(frozen=True)
class Stop:
    """The training that did not reach its end; later ones have not begun."""

    row: str
    home: Path
    # The process's exit code, not 0; CUT_OFF if its time was over.
    code: int


def train_and_compare(rows: Sequence[Row], reference: str) -> list["Compared"]:
    """Train all rows in this order, and compare them with the row named `reference`.

    Raises InputError with the row and its exit code if its training ends early, and the errors of
    `compare`.
    """
    # This import loads JAX, which a process that only starts others does not need.
    from jaxmark.results.compare import compare

    if stop := train(rows):
        problem = f"row {stop.row!r} ended with exit code {stop.code}; run this again to continue"
        raise InputError(stop.home, problem)
    return compare({row.name: list(row.homes.values()) for row in rows}, reference)


def train(
    rows: Sequence[Row],
    *,
    logs: Path | None = None,
    end: float | None = None,
    grace_s: float = GRACE_S,
) -> Stop | None:
    """Run all rows in this order to their ends, except evaluated ones.

    Args:
      logs: a folder for `NAME.log` of each row; the last lines are shown when the row has ended.
        None: output is shown as it comes, and finished rows are named.
      end, grace_s: see `call`.

    Returns:
      None when all are evaluated, else the training that did not end.
    """
    for row in rows:
        for seed, home in row.homes.items():
            if is_done(home):
                if logs is None:
                    print(f"{home}: done before")
                continue
            arguments = training(row, seed)
            if logs is None:
                code = call(arguments, end=end, grace_s=grace_s)
            else:
                code = logged(arguments, logs / f"{row.name}.log", end=end, grace_s=grace_s)
            if code:
                return Stop(row.name, home, code)
    return None


def is_done(home: Path) -> bool:
    """Whether a work dir is finished; the report is written last."""
    last = ("evaluation/summary.json", "report/index.html")
    return all((home / name).exists() for name in last)


def training(row: Row, seed: str) -> list[str]:
    """Arguments of Python that train, evaluate and report a row with one of its seeds."""
    chosen = [f"--workdir={row.homes[seed]}", f"--config={row.config}", f"--config.seed={seed}"]
    return [*(row.program or JAXMARK), *chosen, *row.overrides]


def logged(
    arguments: Sequence[str],
    log: Path,
    *,
    environment: Mapping[str, str] | None = None,
    end: float | None = None,
    grace_s: float = GRACE_S,
) -> int:
    """`call` with its output appended to a log, whose last lines are printed at the end.

    A last line has the log's name, the outcome, and the minutes.
    """
    begin = time.monotonic()
    # Without a buffer, so that the log is complete however the process ends.
    variables = {"PYTHONUNBUFFERED": "1", **(environment or {})}
    with log.open("ab") as output:
        code = call(arguments, environment=variables, output=output, end=end, grace_s=grace_s)
    print(last_lines(log.read_bytes().decode(errors="replace"), SHOWN_LINES))
    state = {0: "done", CUT_OFF: "cut off by the time"}.get(code, "failed")
    print(f"{log.stem}: {state}, {(time.monotonic() - begin) / 60:.1f} minutes")
    return code


def call(
    arguments: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    output: IO[bytes] | None = None,
    end: float | None = None,
    grace_s: float = GRACE_S,
) -> int:
    """Run Python with these arguments in a separate process.

    Args:
      environment: variables in addition to this process's.
      output: file for all output; None: this process's output.
      end: time of SIGTERM, in seconds of `time.monotonic()`, but at least `LEAST_S` from now. None:
        never. With an end, the processes that it started end with it.
      grace_s: seconds from SIGTERM, or Ctrl-C, to SIGKILL.

    Returns:
      Its exit code, or CUT_OFF if it was stopped or Ctrl-C was pressed.
    """
    timed = end is not None
    process = subprocess.Popen(
        [sys.executable, *arguments],
        env={**os.environ, **(environment or {})},
        stdout=output,
        stderr=output,
        # With an end: a process group, which can be ended as a whole. Without: the terminal's
        # group, so that Ctrl-C and hang-up reach it.
        start_new_session=timed,
    )
    try:
        return process.wait(None if end is None else max(LEAST_S, end - time.monotonic()))
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        if timed:
            process.terminate()
        # Time to save a checkpoint before the next signal.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace_s)
        return CUT_OFF
    finally:
        process.kill()
        if timed:
            # Also its workers, which would hold memory of a GPU.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def last_lines(text: str, count: int) -> str:
    """The last lines that are not empty; a progress bar counts with its last state."""
    lines = [line.rsplit("\r", 1)[-1] for line in text.split("\n")]
    return "\n".join([line for line in lines if line.strip()][-count:])

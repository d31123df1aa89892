"""Rows of a table: train them, each in a process of its own, then compare them.

What is evaluated is not done again, and a row that was stopped continues: after an interruption,
or when the time has come, the same call goes on. What the rows are of is not known here.
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

# What trains a row: arguments of Python, before the row's own.
JAXMARK = ("-m", "jaxmark.main")
# Exit code of a process that was stopped before its end; jaxmark's is the same.
CUT_OFF = EXIT_CODE
# Between asking a process to end and making it.
GRACE_S = 45.0
# A process gets so much time, even if its end has come.
LEAST_S = 1.0
# Of a log, when its process has ended.
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
    # What trains it, which takes the arguments of `jaxmark.main`; empty: that.
    program: Sequence[str] = ()


@dataclass(frozen=True)
class Stop:
    """Which training did not reach its end; those after it have not begun."""

    row: str
    home: Path
    # The process's exit code, not 0; CUT_OFF where its time had come.
    code: int


def train_and_compare(rows: Sequence[Row], reference: str) -> list["Compared"]:
    """Train all rows in this order, and compare them with the one that is named `reference`.

    Raises InputError, which names the row and its exit code, where a row's training ends early;
    and where `compare` does.
    """
    # It loads JAX, which a process that only starts others has no use for.
    from jaxmark.results.compare import compare

    if stop := train(rows):
        problem = f"row {stop.row!r} ended with exit code {stop.code}; run this again to go on"
        raise InputError(stop.home, problem)
    return compare({row.name: list(row.homes.values()) for row in rows}, reference)


def train(
    rows: Sequence[Row],
    *,
    logs: Path | None = None,
    end: float | None = None,
    grace_s: float = GRACE_S,
) -> Stop | None:
    """Run all rows to their ends in this order, but for what is evaluated already.

    Args:
      logs: a folder for `NAME.log` of each row; the end of what a row says is shown when it has
        ended. None: all of it is shown as it comes, and what was done before is named.
      end, grace_s: see `call`.

    Returns:
      None when all are evaluated, else where it stopped.
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
    """Whether nothing is left to do in a work dir: the report comes last."""
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
    """`call` with its output added to a log, whose last lines are shown when it has ended.

    After them comes a line with the log's name, how it ended, and the minutes it took.
    """
    begin = time.monotonic()
    # What it said is in the log, however it ends.
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
    """Run Python with these arguments in a process of its own.

    Args:
      environment: variables that it has beside this process's.
      output: where all that it prints goes; None: where this process's goes.
      end: when it gets SIGTERM, in seconds of `time.monotonic()`; it has `LEAST_S` at least. None:
        never. Of what has an end, the processes that it started end with it.
      grace_s: seconds from SIGTERM, or Ctrl-C, to SIGKILL.

    Returns:
      Its exit code, or CUT_OFF if it had to be stopped or Ctrl-C was pressed.
    """
    timed = end is not None
    process = subprocess.Popen(
        [sys.executable, *arguments],
        env={**os.environ, **(environment or {})},
        stdout=output,
        stderr=output,
        # A group that can be ended as a whole. Without an end it stays in the terminal's, whose
        # Ctrl-C and hang-up then reach it.
        start_new_session=timed,
    )
    try:
        return process.wait(None if end is None else max(LEAST_S, end - time.monotonic()))
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        if timed:
            process.terminate()
        # It may save what it has: no second signal before its time.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace_s)
        return CUT_OFF
    finally:
        process.kill()
        if timed:
            # Its workers, too: they would hold memory of a GPU.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def last_lines(text: str, count: int) -> str:
    """The last lines that are not empty; of a progress bar, what it says at its end."""
    lines = [line.rsplit("\r", 1)[-1] for line in text.split("\n")]
    return "\n".join([line for line in lines if line.strip()][-count:])

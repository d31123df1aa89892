"""Runs that are stopped, killed, or run into a full disk, and go on to the same bits.

Real processes of the command line. What a run ends in is told by the digests in its last checkpoint
and by its log, byte by byte.
"""

import os
import random
import shutil
import signal
import sys
import time

import pytest
from running import Process, with_disk

from jaxmark.system.interrupts import EXIT_CODE
from jaxmark.system.lock import locked
from jaxmark.training.checkpoints import Checkpoints
from jaxmark.training.records import METRICS, SPEED, read_records

# Both phases of the adversarial method; lines of the log that lie between checkpoints.
SETTINGS = (
    "--config=experiments/cow_table1.py:tiny/D-MRA-CTA-dagger",
    "--mode=train",
    "--config.method.steps=40",
    "--config.method.adversarial_steps=40",
    "--config.train.validate_every=8",
    "--config.train.log_every=3",
)
STEPS = 80


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing happened to, and the cache that it filled."""
    folder = tmp_path_factory.mktemp("whole")
    begin = time.monotonic()
    process = start(folder, "whole")
    assert process.wait() == 0, process.lines()
    (folder / "seconds").write_text(f"{time.monotonic() - begin}")
    return folder


def start(folder, name, *arguments, cache=None):
    return Process(
        folder,
        name,
        *SETTINGS,
        f"--workdir={folder / name}",
        f"--config.data.cache={cache or folder / 'cache'}",
        *arguments,
    )


def step_of(work):
    """The last step in the log of speeds, which is written as it goes."""
    records = read_records(work / SPEED)
    return records[-1]["step"] if records else 0


def assert_same(work, whole):
    steps = Checkpoints(work).steps()
    assert steps == Checkpoints(whole).steps() and steps[-1] == STEPS
    # Of parameters, optimisers and the data iterator.
    assert Checkpoints(work).meta(STEPS) == Checkpoints(whole).meta(STEPS)
    assert (work / METRICS).read_bytes() == (whole / METRICS).read_bytes()


def continued(process):
    return "continuing at step" in process.out.read_text("utf-8")


def until(condition, process):
    """Like `wait_for`, and quick: a checkpoint is written in a tenth of a second."""
    while not condition():
        assert process.popen.poll() is None, process.lines()
        time.sleep(0.001)


def kill(process):
    process.popen.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def writing(work):
    """Whether a checkpoint is being written."""
    folder = work / "checkpoints"
    return folder.is_dir() and any(not name.isdecimal() for name in os.listdir(folder))


def test_a_run_that_is_stopped_and_killed_ends_in_the_same_bits(whole, tmp_path):
    cache, work = whole / "cache", tmp_path / "work"

    # SIGTERM between lines of the log and between checkpoints: all is saved.
    process = start(tmp_path, "work", cache=cache)
    until(lambda: step_of(work) >= 3, process)
    process.popen.send_signal(signal.SIGTERM)
    assert process.wait() == EXIT_CODE
    assert process.lines()[-1] == "stopped by SIGTERM; the same command continues"
    stopped_at = Checkpoints(work).steps()[-1]
    assert stopped_at >= 3 and not writing(work)

    # SIGKILL while a checkpoint is written, then in the second phase, then while one is written.
    for moment in (
        lambda: writing(work),
        lambda: step_of(work) > STEPS // 2 + 1,
        lambda: writing(work),
    ):
        process = start(tmp_path, "work", cache=cache)
        until(lambda process=process: continued(process), process)
        until(moment, process)
        kill(process)

    process = start(tmp_path, "work", cache=cache)
    assert process.wait() == 0 and continued(process)
    assert_same(work, whole / "whole")


@pytest.mark.slow
def test_a_run_that_is_killed_at_random_ends_in_the_same_bits(whole, tmp_path):
    work, random_ = tmp_path / "work", random.Random(0)
    points: list[str] = []
    while len(points) < 24:
        process = start(tmp_path, "work", cache=whole / "cache")
        if random_.random() < 0.5:
            # Anywhere from the start of Python to the end of the run.
            time.sleep(random_.uniform(0, 1.2 * whole_seconds(whole)))
        else:
            # Anywhere in the writing of one of the next checkpoints.
            for _ in range(random_.randint(1, 3)):
                until_ended(lambda: writing(work), process)
                until_ended(lambda: not writing(work), process)
            until_ended(lambda: writing(work), process)
            time.sleep(random_.uniform(0, 0.1))
        if process.popen.poll() is None:
            kill(process)
            half = " while a checkpoint was written" * writing(work)
            points.append(f"after step {step_of(work)}{half}")
            continue
        # It came to its end: it is compared, and all begins anew.
        assert process.wait() == 0, process.lines()
        assert_same(work, whole / "whole")
        shutil.rmtree(work)
    process = start(tmp_path, "work", cache=whole / "cache")
    assert process.wait() == 0, process.lines()
    assert_same(work, whole / "whole")
    print("\n".join(["killed", *points]))


def whole_seconds(whole):
    """How long the run took that nothing happened to, from Python's start to the end."""
    return float((whole / "seconds").read_text())


def until_ended(condition, process):
    while process.popen.poll() is None and not condition():
        time.sleep(0.001)


def test_a_work_dir_in_use_is_refused(whole, tmp_path):
    with locked(tmp_path / "work"):
        process = start(tmp_path, "work", cache=whole / "cache")
        assert process.wait() == 1
    (line,) = process.errors()
    assert line.startswith(f"error: {tmp_path / 'work'}: is in use by process {os.getpid()} on ")
    assert not (tmp_path / "work").exists()


def test_a_damaged_newest_checkpoint_is_passed_over_and_the_run_ends_alike(whole, tmp_path):
    work = tmp_path / "work"
    shutil.copytree(whole / "whole", work)
    steps = Checkpoints(work).steps()
    (work / "checkpoints" / str(STEPS) / "params" / "manifest.ocdbt").write_bytes(b"")
    process = start(tmp_path, "work", cache=whole / "cache")
    assert process.wait() == 0
    (warning,) = [line for line in process.lines() if line.startswith("warning: ")]
    assert f"{STEPS}: is damaged: params cannot be read" in warning
    assert f"continuing at step {steps[-2]} of {STEPS}" in process.out.read_text("utf-8")
    assert_same(work, whole / "whole")
    assert [path.name for path in (work / "damaged_checkpoints").iterdir()] == [f"{STEPS}-0"]


@pytest.mark.slow
def test_a_full_disk_ends_training_with_a_line_and_keeps_what_was(whole, disk):
    command = [sys.executable, "-m", "jaxmark.main", "--nohuge_pages", *SETTINGS]
    command += [f"--workdir={disk / 'work'}", f"--config.data.cache={whole / 'cache'}"]
    # What is on the disk goes with the process that sees it: it is copied out.
    script = f'"$@"; code=$?; cp -r {disk}/work {disk.parent}/kept; exit $code'
    done = with_disk(disk, "1500k", "sh", "-c", script, "sh", *command)
    assert done.returncode == 1
    said = done.stderr.replace("\r", "\n").splitlines()
    said = [line for line in said if line.strip() and "%|" not in line]
    assert len(said) == 1, said
    (error,) = said
    assert error.startswith("error: ") and error.endswith(
        "(No space left on device); earlier checkpoints are intact"
    )
    # With more room the same command goes on.
    kept = disk.parent / "kept"
    assert Checkpoints(kept).steps()[-1] >= 8
    process = start(disk.parent, "kept", cache=whole / "cache")
    assert process.wait() == 0 and continued(process)
    assert_same(kept, whole / "whole")

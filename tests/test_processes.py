"""Several processes do one run: real processes, on this machine, of the command line."""

import csv
import json
import signal
import time

import numpy as np
import pytest
from running import PROGRAM, Process, free_port, wait_for
from running import TINY as CONFIG

from jaxmark.system.interrupts import EXIT_CODE
from jaxmark.system.processes import FAREWELL_SECONDS, HEARTBEAT_SECONDS

TINY = (CONFIG, "--config.train.batch=2")
# What JAX needs beyond the heartbeat on a busy machine, in a test.
SLACK_SECONDS = 60


def pair(folder, *arguments, second=(), program=PROGRAM):
    """Two processes of one job; `second` and `program` are for the second alone."""
    job = (f"--coordinator=127.0.0.1:{free_port()}", "--processes=2")
    return (
        Process(folder, "process0", *arguments, *job, "--process=0"),
        Process(folder, "process1", *arguments, *second, *job, "--process=1", program=program),
    )


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def losses(work):
    """Step -> loss, of the log."""
    log = [json.loads(line) for line in (work / "logs" / "metrics.jsonl").open()]
    return {f"loss {r['step']}": r["loss"] for r in log if r["kind"] == "train"}


def numbers(work):
    """What a run found, and where."""
    found = losses(work)
    for row in table(work / "predictions" / "landmarks_subvoxel.csv"):
        for axis in "xyz":
            name = f"{row['case']} {row['landmark']} {axis}"
            found[name] = float(row[f"{axis}_lps_mm"])
    found["mre"] = json.loads((work / "evaluation" / "summary.json").read_text())["mre_mm"]
    return found


def assert_same(found, expected):
    """Up to rounding: sums over a batch are taken in another order. Of losses and millimetres."""
    assert found.keys() == expected.keys()
    np.testing.assert_allclose(list(found.values()), list(expected.values()), atol=1e-3, rtol=1e-4)


def files(work):
    """All but what is in a checkpoint, where each process writes files of its own."""
    inside = (path.relative_to(work) for path in work.rglob("*"))
    return sorted(str(p) for p in inside if p.parts[0] != "checkpoints" or len(p.parts) <= 2)


def cases_done(folder):
    return sorted(path.stem for path in (folder / "batch" / "cases").glob("*.json"))


def test_two_processes_do_the_whole_run_of_one_with_two_devices(tmp_path):
    def settings(name):
        return (*TINY, f"--workdir={tmp_path / name}", f"--config.data.cache={tmp_path / name}-c")

    one = Process(tmp_path, "one", *settings("one"), devices=2)
    two = pair(tmp_path, *settings("two"))
    assert [process.wait() for process in (one, *two)] == [0, 0, 0], two[1].lines()
    assert "2 x cpu (cpu)" in two[0].out.read_text("utf-8")
    assert_same(numbers(tmp_path / "two"), numbers(tmp_path / "one"))
    assert files(tmp_path / "two") == files(tmp_path / "one")
    # Only the first one speaks.
    assert "MRE" in two[0].out.read_text("utf-8") and "%|" in two[0].err.read_text("utf-8")
    assert "MRE" not in two[1].out.read_text("utf-8") and "%|" not in two[1].err.read_text("utf-8")


def test_processes_of_different_commands_end_with_one_line(tmp_path):
    arguments = (*TINY, f"--workdir={tmp_path}", f"--config.data.cache={tmp_path}")
    two = pair(tmp_path, *arguments, second=["--config.seed=7"])
    assert [process.wait() for process in two] == [1, 1]
    line = "error: --distributed: process 1 has another command than process 0"
    assert [process.errors() for process in two] == [[line], [line]]


@pytest.mark.slow
def test_what_the_primary_finds_wrong_ends_all_with_its_message(tmp_path):
    arguments = (*TINY, f"--workdir={tmp_path}", "--config.data.root=/nowhere")
    two = pair(tmp_path, *arguments)
    assert [process.wait() for process in two] == [1, 1]
    line = "config.data.root: there is no folder '/nowhere'"
    assert [process.errors() for process in two] == [
        [f"error: {line}"],
        [f"error: process 0: {line}"],
    ]


FAILS = """
import jaxmark.training.loop as loop
def fails(mesh, tree): raise InputError("image.npy", "is damaged")
from jaxmark.system.errors import InputError
loop.put_batch = fails
"""


@pytest.mark.slow
def test_a_process_that_fails_alone_says_why_and_ends_the_others(tmp_path):
    arguments = (*TINY, f"--workdir={tmp_path}", f"--config.data.cache={tmp_path}")
    two = pair(tmp_path, *arguments, program=FAILS + PROGRAM)
    assert two[1].wait() == 1
    assert two[1].errors() == ["error: image.npy: is damaged"]
    assert two[0].wait(FAREWELL_SECONDS + HEARTBEAT_SECONDS + SLACK_SECONDS) != 0


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_job_and_fewer_continue_it(tmp_path, victim):
    settings = (*TINY, "--config.method.steps=60", "--config.train.validate_every=20")
    settings += (f"--config.data.cache={tmp_path / 'cache'}",)
    work, whole = tmp_path / "work", tmp_path / "whole"
    two = pair(tmp_path, *settings, f"--workdir={work}")
    wait_for((work / "checkpoints" / "20").exists, *two)
    two[victim].popen.send_signal(signal.SIGKILL)
    begin = time.monotonic()
    assert two[victim].wait() == -signal.SIGKILL
    assert two[1 - victim].wait(HEARTBEAT_SECONDS + SLACK_SECONDS) != 0
    print(f"ended {time.monotonic() - begin:.1f} s after process {victim} was killed")
    # One process with one device continues; another has done all alone.
    processes = [
        Process(tmp_path, name, *settings, f"--workdir={tmp_path / name}")
        for name in ("work", "whole")
    ]
    assert [process.wait() for process in processes] == [0, 0]
    assert "continuing at step" in processes[0].out.read_text("utf-8")
    # Not what it predicts: of two spots that are as bright, rounding chooses.
    assert_same(losses(work), losses(whole))


@pytest.mark.slow
def test_processes_share_new_scans_and_a_killed_one_leaves_what_it_did(tmp_path):
    cache = tmp_path / "cache"
    model = ("--mode=predict", f"--checkpoint={tmp_path / 'model'}")
    one = Process(
        tmp_path, "model", *TINY, f"--workdir={tmp_path / 'model'}", f"--config.data.cache={cache}"
    )
    assert one.wait() == 0, one.lines()
    (images,) = cache.glob("phantom-*/images")
    scans, output, alone = (tmp_path / name for name in ("scans", "output", "alone"))
    scans.mkdir()
    for number in range(24):
        source = sorted(images.iterdir())[number % 6]
        (scans / f"{number:02d}.nii.gz").write_bytes(source.read_bytes())
    (scans / "bad.nii.gz").write_text("no scan")
    job = (*model, f"--input={scans}", f"--output={output}", "--config.data.workers=1")

    two = pair(tmp_path, *job)
    wait_for(lambda: len(cases_done(output)) > 1, *two)
    two[1].popen.send_signal(signal.SIGKILL)
    assert two[0].wait(HEARTBEAT_SECONDS + SLACK_SECONDS) != 0
    done = cases_done(output)
    before = {name: (output / f"{name}.csv").stat().st_mtime_ns for name in done}

    two = pair(tmp_path, *job)
    assert [process.wait() for process in two] == [2, 2]
    batch = json.loads((output / "batch" / "batch.json").read_text())
    assert (batch["scans"], batch["done_before"]) == (25, len(done))
    assert batch["written"] == 24 - len(done)
    assert [failure["case"] for failure in batch["failed"]] == ["bad"]
    assert len(two[0].errors() + two[1].errors()) == 1
    assert before == {name: (output / f"{name}.csv").stat().st_mtime_ns for name in done}

    assert Process(tmp_path, "alone", *job, f"--output={alone}").wait() == 2
    rows, expected = (table(folder / "batch" / "landmarks.csv") for folder in (output, alone))
    assert rows == expected
    assert files(output) == files(alone)


@pytest.mark.slow
def test_a_sigterm_to_one_process_makes_all_save_the_same_step_and_end_with_3(tmp_path):
    settings = (*TINY, "--config.method.steps=3000", "--config.train.validate_every=1000")
    work = tmp_path / "work"
    two = pair(tmp_path, *settings, f"--workdir={work}", f"--config.data.cache={tmp_path}")
    log = work / "logs" / "metrics.jsonl"
    wait_for(lambda: log.exists() and len(losses(work)) > 2, *two)
    two[1].popen.send_signal(signal.SIGTERM)
    assert [process.wait() for process in two] == [EXIT_CODE, EXIT_CODE]
    (saved,) = (path.name for path in (work / "checkpoints").iterdir() if path.name.isdigit())
    assert max(int(name.split()[1]) for name in losses(work)) <= int(saved) < 1000

"""SIGTERM and Ctrl-C at any moment of a command: exit code 3 at once, one line, nothing half done.

Real processes. What they are in the middle of (imports, a compiler, worker processes, a file) is a
matter of the moment at which the signal comes.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
from running import ROOT, TINY, jaxmark

from jaxmark.system.interrupts import EXIT_CODE
from jaxmark.system.lock import FILE as LOCK

# From the signal to the end; the machine may be busy.
SECONDS = 4.0


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A work dir in which all is done, and the cache that was filled."""
    folder = tmp_path_factory.mktemp("done")
    with tarfile.open(Path(__file__).parent / "work_dirs" / "heatmap.tar.xz") as archive:
        kind = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        archive.extractall(folder, **kind)
    work = folder / "heatmap"
    result = jaxmark(TINY, f"--workdir={work}", f"--config.data.cache={folder / 'cache'}")
    assert result.returncode == 0, result.stderr
    return folder


def arguments(done, folder, command):
    """Of a command that has much to do, or little, into folders of its own."""
    mine = (TINY, f"--workdir={folder / 'work'}", f"--config.data.cache={done / 'cache'}")
    if command == "batch":
        scans = next((done / "cache").glob("phantom-*")) / "images"
        out = f"--output={folder / 'out'}"
        return ("--mode=predict", f"--checkpoint={done / 'heatmap'}", f"--input={scans}", out)
    if command == "prepare":
        return (*mine[:2], "--mode=prepare", f"--config.data.cache={folder / 'cache'}")
    if command == "train":
        return (*mine, "--mode=train", "--config.method.steps=100000")
    shutil.copytree(done / "heatmap", folder / "work")
    return (*mine, f"--mode={command}")


COMMANDS = ("batch", "prepare", "train", "predict", "evaluate", "report")


def send(done, folder, command, number, seconds):
    """Start a command, and send it a signal so much later; whether it was still at work."""
    process = subprocess.Popen(
        [sys.executable, "-m", "jaxmark.main", *arguments(done, folder, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS",)},
        start_new_session=True,
    )
    time.sleep(seconds)
    at_work = process.poll() is None
    if at_work and number == signal.SIGINT:
        # A terminal sends it to all processes of the command.
        os.killpg(process.pid, number)
    elif at_work:
        process.send_signal(number)
    begin = time.monotonic()
    _, stderr = process.communicate(timeout=60)
    took = time.monotonic() - begin
    where = f"{command}, {number.name} after {seconds:.2f} s: {process.returncode}\n{stderr}"
    if not at_work or process.returncode == 0:
        # It was done before the signal came, or while it came.
        assert process.returncode == 0, where
        return False
    assert process.returncode == EXIT_CODE and took < SECONDS, f"{where}\n{took:.1f} s"
    lines = [
        line for line in stderr.replace("\r", "\n").splitlines() if line and "it/s" not in line
    ]
    lines = [line for line in lines if "%|" not in line and "?" not in line]
    assert lines == [f"stopped by {number.name}; the same command continues"], where
    hidden = [path for path in folder.rglob(".*") if path.name != LOCK]
    assert not hidden, f"{where}\n{hidden}"
    return True


@pytest.mark.parametrize(
    ("command", "number", "seconds"),
    [
        # While libraries are imported, while workers start, while a program is compiled.
        ("report", signal.SIGINT, 0.6),
        ("batch", signal.SIGINT, 3.2),
        ("train", signal.SIGTERM, 4.0),
    ],
)
def test_a_signal_ends_a_command_at_once(done, tmp_path, command, number, seconds):
    send(done, tmp_path, command, number, seconds)


@pytest.mark.slow
def test_forty_signals_at_random_moments(done, tmp_path):
    rng = random.Random(1)
    met = 0
    for count in range(40):
        folder = tmp_path / str(count)
        folder.mkdir()
        command, number = COMMANDS[count % 6], rng.choice([signal.SIGINT, signal.SIGTERM])
        met += send(done, folder, command, number, rng.uniform(0.2, 6.0))
        shutil.rmtree(folder)
    # Some commands are done before their moment has come.
    assert met >= 15


def test_what_was_stopped_goes_on(done, tmp_path):
    send(done, tmp_path, "batch", signal.SIGTERM, 3.0)
    result = jaxmark(*arguments(done, tmp_path, "batch"))
    assert result.returncode == 0, result.stderr
    assert len(list((tmp_path / "out").glob("*.mrk.json"))) == 6

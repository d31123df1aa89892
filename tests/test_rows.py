"""The runner of rows, with real processes that only pretend to train."""

import json
import os
import time
from pathlib import Path

import pytest
from conftest import refused

from experiments import rows
from experiments.rows import Row, Stop

# Notes its flags in `asked` beside the work dir, and is evaluated at once; preset "bad" fails.
TRAINS = """
import json, pathlib, sys
given = dict(argument.split("=", 1) for argument in sys.argv[1:])
home = pathlib.Path(given["--workdir"])
with open(home.parent / "asked", "a") as asked:
    asked.write(json.dumps(given) + "\\n")
if given["--config"].endswith(":bad"):
    sys.exit(7)
for name in ("evaluation/summary.json", "report/index.html"):
    (home / name).parent.mkdir(parents=True)
    (home / name).write_text("{}")
"""
# The first time it starts a worker, which holds the pipe and says so there, and neither of them
# ends; the second time it is as above.
HANGS_ONCE = f"""
import os, pathlib, sys, time
home = pathlib.Path(sys.argv[1].removeprefix("--workdir="))
if not home.exists():
    home.mkdir()
    pipe = os.open(home.parent / "pipe", os.O_WRONLY)
    if not os.fork():
        os.write(pipe, b"worker")
    time.sleep(60)
{TRAINS}
"""
DEAF = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)"
# Presses Ctrl-C on who started it, as a terminal does on both, and takes its time to save.
INTERRUPTS = "import os, time; os.kill(os.getppid(), 2); time.sleep(0.6); open({!r}, 'w')"


def pretend(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    monkeypatch.setattr(rows, "JAXMARK", ("-S", "-c", program))


def row(folder: Path, name: str, preset: str = "good", seeds: str = "0") -> Row:
    return Row(name, f"file.py:{preset}", {seed: folder / f"{name}-{seed}" for seed in seeds})


def asked(folder: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / "asked").read_text().splitlines()]


def test_rows_are_trained_in_order_and_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, TRAINS)
    second = Row("b", "file.py:good", {"3": tmp_path / "other"}, ["--config.train.batch=4"])
    table = [row(tmp_path, "z", seeds="01"), second, row(tmp_path, "a")]
    assert rows.train(table) is None
    assert capfd.readouterr().out == ""
    found = asked(tmp_path)
    assert [Path(flags["--workdir"]).name for flags in found] == ["z-0", "z-1", "other", "a-0"]
    assert [flags["--config.seed"] for flags in found] == ["0", "1", "3", "0"]
    assert {flags["--config"] for flags in found} == {"file.py:good"}
    assert [flags.get("--config.train.batch") for flags in found] == [None, None, "4", None]

    assert rows.train(table) is None
    assert asked(tmp_path) == found
    homes = [home for one in table for home in one.homes.values()]
    assert capfd.readouterr().out == "".join(f"{home}: done before\n" for home in homes)
    # Where there are logs, what is shown is theirs.
    assert rows.train(table, logs=tmp_path) is None
    assert capfd.readouterr().out == ""

    compared = "jaxmark.results.compare.compare"
    monkeypatch.setattr(compared, lambda homes, reference: [homes, reference])
    homes_by_row = {one.name: list(one.homes.values()) for one in table}
    assert rows.train_and_compare(table, "b") == [homes_by_row, "b"]


def test_a_row_that_fails_ends_it_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, TRAINS)
    table = [row(tmp_path, "first"), row(tmp_path, "odd", "bad"), row(tmp_path, "last")]
    message = "row 'odd' ended with exit code 7; run this again to continue"
    refused(lambda: rows.train_and_compare(table, "first"), f"{tmp_path / 'odd-0'}: {message}")
    assert [Path(flags["--workdir"]).name for flags in asked(tmp_path)] == ["first-0", "odd-0"]
    # What is mended goes on, and what was done stays.
    table[1] = row(tmp_path, "odd")
    assert rows.train(table) is None
    again = [Path(flags["--workdir"]).name for flags in asked(tmp_path)][2:]
    assert again == ["odd-0", "last-0"]


def test_a_row_is_cut_off_with_its_workers_and_continued(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, HANGS_ONCE)
    os.mkfifo(tmp_path / "pipe")
    pipe = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    table = [row(tmp_path, "a"), row(tmp_path, "b")]
    begin = time.monotonic()
    cut = rows.train(table, logs=tmp_path, end=begin + 1)
    assert cut == Stop("a", tmp_path / "a-0", 3)
    assert capfd.readouterr().out.startswith("\na: cut off by the time, 0.")
    os.set_blocking(pipe, True)
    assert os.read(pipe, 10) == b"worker"
    # The pipe's end: nobody is left who holds it.
    assert os.read(pipe, 10) == b""
    os.close(pipe)
    assert time.monotonic() - begin < 50
    assert not (tmp_path / "b-0").exists()

    (tmp_path / "b-0").mkdir()
    assert rows.train(table, logs=tmp_path, end=time.monotonic() + 60) is None
    said = "\na: done, 0.0 minutes\n\nb: done, 0.0 minutes\n"
    assert capfd.readouterr().out == said


def test_what_does_not_end_is_ended(tmp_path: Path) -> None:
    begin = time.monotonic()
    assert rows.call(["-S", "-c", DEAF], end=begin, grace_s=0.2) == 3
    saved = tmp_path / "saved"
    assert rows.call(["-S", "-c", INTERRUPTS.format(str(saved))]) == 3 and saved.exists()
    assert time.monotonic() - begin < 50


def test_a_log_keeps_all_and_its_end_is_shown(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def logged(program: str, **environment: str) -> int:
        arguments = ["-S", "-c", program]
        return rows.logged(arguments, tmp_path / "a.log", environment=environment)

    program = "print('\\rbar 1\\rbar 2\\nsaid\\n'); import os; print(os.environ['MARK'])"
    assert logged(program, MARK="x") == 0
    assert capfd.readouterr().out == "bar 2\nsaid\nx\na: done, 0.0 minutes\n"
    assert logged("1 / 0") == 1
    out = capfd.readouterr().out
    assert "ZeroDivisionError" in out and out.endswith("\na: failed, 0.0 minutes\n")
    assert "bar 1" in (tmp_path / "a.log").read_text()
    assert rows.last_lines("1\n\n2\n3\n", 2) == "2\n3"

"""Disks that are full or read-only: one line names a file, and what was there stays as it was.

The disks are real: file systems in memory, each seen by one process alone. What happens there is in
the functions `on_...`, which run in such processes.
"""

import contextlib
import dataclasses
import errno
import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from running import TINY, jaxmark, with_disk

from jaxmark.config import Data
from jaxmark.data.cases import PreparedCase, save_case
from jaxmark.data.cohort import read_cohort
from jaxmark.data.landmarks import write_fcsv, write_mrk_json, write_table
from jaxmark.data.phantoms.cow.cohort import CirclePhantom, write_cohort
from jaxmark.data.prepare import prepare_cohort
from jaxmark.data.scans import write_scan
from jaxmark.results.contact_sheet import write_contact_sheets
from jaxmark.system.errors import InputError
from jaxmark.system.files import write_json

FULL, READ_ONLY = (os.strerror(code) for code in (errno.ENOSPC, errno.EROFS))


def run_on(disk: Path, size: str, what: Callable[[Path, Path], None]) -> None:
    """Calls `what` with the disk, and with a folder elsewhere."""
    code = f"import sys; sys.path[:0] = ['tests', 'tests/results']; import {__name__} as t; "
    code += f"t.{what.__name__}(*map(t.Path, sys.argv[1:]))"
    done = with_disk(disk, size, sys.executable, "-c", code, disk, disk.parent)
    assert done.returncode == 0, done.stderr
    print(done.stdout)


def remount(disk: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(disk)], check=True)


def fill(disk: Path) -> Path:
    """Takes all the room that is left."""
    filler = disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    return filler


def small_cohort(folder: Path) -> Data:
    root, spacing_mm = folder / "root", (2.5, 2.5, 2.5)
    write_cohort(
        root, CirclePhantom(3, 1, 1, 4, spacing_mm=spacing_mm, shape=(44, 36, 36), unpaired=0)
    )
    return Data(str(root), spacing_mm=(2.0, 2.0, 2.0), crop=(24, 20, 16), margin=2, workers=2)


def state(folder: Path) -> dict[Path, int]:
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def fails(call: Callable[[], object], problem: str, below: Path) -> None:
    """The call says what is wrong and where."""
    with pytest.raises(OSError) as caught:
        call()
    assert caught.value.strerror == problem
    assert str(caught.value.filename).startswith(str(below)), caught.value


def on_a_disk_that_preparation_fills(disk: Path, folder: Path) -> None:
    data = dataclasses.replace(small_cohort(folder), cache=str(disk))
    cohort = read_cohort(data)
    fails(lambda: prepare_cohort(cohort, data), FULL, disk)
    before = state(disk)
    assert 1 <= len([path for path in before if path.name == "image.npy"]) <= 4
    assert not [path for path in disk.rglob("*") if path.name.startswith(".")]
    remount(disk, "size=4m")
    data = dataclasses.replace(data, workers=1)
    prepared = prepare_cohort(cohort, data)
    # It went on where it had stopped, and nothing of it was damaged.
    assert before.items() <= state(disk).items() and prepared.mended == ()
    remount(disk, "ro")
    assert prepare_cohort(cohort, data).cases.keys() == prepared.cases.keys()
    other = dataclasses.replace(data, spacing_mm=(2.5, 2.5, 2.5))
    fails(lambda: prepare_cohort(cohort, other), READ_ONLY, disk)
    fails(lambda: write_contact_sheets(prepared, disk / "new"), READ_ONLY, disk)


def test_preparation(disk: Path) -> None:
    run_on(disk, "140k", on_a_disk_that_preparation_fills)


def on_a_disk_that_is_full(disk: Path, folder: Path) -> None:
    rng = np.random.default_rng(0)
    voxels, place = rng.integers(0, 4000, (40, 36, 30)).astype(np.int16), np.eye(4)
    image = rng.normal(size=(20, 18, 16))
    points = {f"p{number}": rng.normal(size=3) for number in range(200)}
    nowhere = np.zeros((1, 3)), np.ones(1, bool), np.zeros(1, bool)
    writers: dict[str, Callable[[Path], None]] = {
        "a.json": lambda path: write_json(path, {"a": ["b"] * 5000}),
        "a.mrk.json": lambda path: write_mrk_json(path, points),
        "a.fcsv": lambda path: write_fcsv(path, points),
        "a.csv": lambda path: write_table(path, {"a": points}),
        **{
            f"a{end}": lambda path: write_scan(path, voxels, place)
            for end in (".nii", ".nii.gz", ".mha", ".nrrd")
        },
        "case": lambda path: save_case(PreparedCase("a", path, place, *nowhere), image, path),
    }
    for name, write in writers.items():
        write(disk / name)
    before = {path: path.read_bytes() for path in disk.rglob("*") if path.is_file()}
    filler = fill(disk)
    for name, write in writers.items():
        fails(lambda write=write, name=name: write(disk / name), FULL, disk / name)
    filler.unlink()
    assert {path: path.read_bytes() for path in disk.rglob("*") if path.is_file()} == before


def test_every_writer(disk: Path) -> None:
    run_on(disk, "1m", on_a_disk_that_is_full)


def on_a_disk_that_a_batch_fills(disk: Path, folder: Path) -> None:
    from test_batch import model, straight, write

    from jaxmark.results.batch import predict_scans, scans_at

    found = model(folder / "model")
    for name in "abcdef":
        write(folder / "in" / f"{name}.mha", straight())
    sources = scans_at(folder / "in")
    out = disk / "out"
    lines = io.StringIO()
    with contextlib.redirect_stderr(lines):
        outcome = predict_scans(found, sources, out)
    errors = [line for line in lines.getvalue().splitlines() if "error: " in line]
    assert len(errors) == 1 and FULL in errors[0] and str(out) in errors[0]
    assert outcome.stopped and outcome.written >= 1 and len(outcome.failures) == 1
    done = {path.stem for path in (out / "batch" / "cases").iterdir()}
    assert len(done) == outcome.written
    # Of no case a part.
    assert {path.name.partition(".")[0] for path in out.iterdir() if path.is_file()} == done
    remount(disk, "size=16m")
    again = predict_scans(found, sources, out)
    assert (again.skipped, again.written) == (len(done), 6 - len(done)) and not again.stopped
    # Where not one case can be written, there is no batch.
    fill(disk)
    with pytest.raises(InputError, match=f"{out}/new: case 'a' cannot be written: {FULL}"):
        predict_scans(found, sources, out / "new")
    remount(disk, "ro")
    with pytest.raises(InputError, match=f"{out}/other: cannot be written: {READ_ONLY}"):
        predict_scans(found, sources, out / "other")


def test_a_batch(disk: Path) -> None:
    run_on(disk, "500k", on_a_disk_that_a_batch_fills)


def test_the_command_line(disk: Path) -> None:
    command = [sys.executable, "-m", "jaxmark.main", TINY, "--mode=prepare", "--nohuge_pages"]
    result = with_disk(disk, "200k", *command, f"--workdir={disk}/w", f"--config.data.cache={disk}")
    assert result.returncode == 1
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in result.stderr
    assert lines[0].startswith(f"error: {disk}/phantom-") and lines[0].endswith(f": {FULL}")


STAGES = """
set -e
cp -r "$2" "$1/work"; mkdir "$1/in"; cp "$4" "$1/in"
dd if=/dev/zero of="$1/filler" bs=4k 2>/dev/null || true
sum() { (cd "$1/work" && find . -type f | sort | xargs cat | cksum; find . | sort | cksum); }
before=$(sum "$1")
for mode in predict evaluate report "predict --input=$1/in --output=$1/out"; do
  code=0
  $5 --workdir="$1/work" --config.data.cache="$3" --mode=$mode || code=$?
  echo "exit code $code"
done
[ "$before" = "$(sum "$1")" ] && echo "all as before"
"""


@pytest.mark.slow
def test_all_stages_of_a_finished_run(disk: Path) -> None:
    folder = disk.parent
    main = f"{sys.executable} -m jaxmark.main {TINY} --nohuge_pages"
    made = jaxmark(TINY, f"--workdir={folder}/work", f"--config.data.cache={folder}/cache")
    assert made.returncode == 0, made.stderr
    scan = next((folder / "cache").glob("phantom-*/images/phantom-005.nii.gz"))
    result = with_disk(
        disk, "6m", "sh", "-c", STAGES, "sh", disk, folder / "work", folder / "cache", scan, main
    )
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    print(result.stdout, result.stderr)
    assert result.stdout.count("exit code 1\n") == 4 and result.stdout.endswith("all as before\n")
    assert len(lines) == 4 and all(line.endswith(FULL) for line in lines)
    assert "Traceback" not in result.stderr

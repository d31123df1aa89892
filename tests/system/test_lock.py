"""A folder is one process' at a time."""

import subprocess
import sys

import pytest

from jaxmark.system.errors import InputError
from jaxmark.system.lock import FILE, locked

HOLDS = """
import sys
from pathlib import Path
from jaxmark.system.lock import locked
with locked(Path(sys.argv[1])):
    print("in", flush=True)
    sys.stdin.read()
"""


def holder(folder):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        encoding="utf-8",
    )
    assert process.stdout.readline() == "in\n"
    return process


def test_a_second_process_is_refused_and_told_of_the_first(tmp_path):
    first = holder(tmp_path / "work")
    try:
        owner = rf"work: is in use by process {first.pid} on .+, for 0\.\d minutes"
        with pytest.raises(InputError, match=owner), locked(tmp_path / "work"):
            pass
        (tmp_path / "work" / FILE).write_text("{")
        with pytest.raises(InputError, match="in use by another"), locked(tmp_path / "work"):
            pass
    finally:
        first.kill()
        first.wait()
    # However it ended.
    with locked(tmp_path / "work"):
        pass
    with locked(tmp_path / "work"):
        pass
    assert (tmp_path / "work" / FILE).exists()


def test_a_folder_in_which_nothing_was_written_is_not_left(tmp_path):
    with pytest.raises(ValueError, match="early"), locked(tmp_path / "new" / "work"):
        raise ValueError("early")
    assert not (tmp_path / "new" / "work").exists()
    with locked(tmp_path / "work"):
        (tmp_path / "work" / "result").touch()
    assert (tmp_path / "work" / "result").exists()

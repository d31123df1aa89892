"""The fuzzing script: its good files are good, its changes are the same each time, and it tells."""

from pathlib import Path

import numpy as np
import pytest

from experiments import fuzz
from jaxmark.system.errors import InputError


@pytest.mark.parametrize("name", fuzz.KINDS)
def test_good_files_are_read_and_changed_ones_too_or_refused(tmp_path: Path, name: str) -> None:
    kind = fuzz.KINDS[name]
    files = kind.make(tmp_path)
    assert files and all(file.is_file() for file in files)
    kind.read(tmp_path)
    content = files[0].read_bytes()
    for seed in range(20):
        damaged = fuzz.changed(content, np.random.default_rng(seed))
        assert damaged == fuzz.changed(content, np.random.default_rng(seed))
        files[0].write_bytes(damaged)
        try:
            kind.read(tmp_path)
        except InputError as error:
            assert str(error).isprintable()


def test_what_fails_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Reader:
        """As one whose process fails at every second file."""

        count = 0

        def __init__(self, *_: object) -> None: ...

        def read(self, _: Path) -> tuple[str, str]:
            Reader.count += 1
            return ("failed", "Traceback\nOops") if Reader.count % 2 == 0 else ("read", "")

        def stop(self) -> None: ...

    monkeypatch.setattr(fuzz, "Reader", Reader)
    row = fuzz.fuzz("batch record", fuzz.KINDS["batch record"], 0.2, 0, tmp_path / "kept")
    name, tried, read, refused, failed, _ = row
    assert name == "batch record" and refused == "0"
    assert int(tried) == int(read) + int(failed) and int(failed) >= 1
    # Once for all that failed alike.
    (kept,) = (tmp_path / "kept" / "batch-record").iterdir()
    assert {path.name for path in kept.iterdir()} == {"a.json", "what.txt"}
    assert "failed: " in capsys.readouterr().out

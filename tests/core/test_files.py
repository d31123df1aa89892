import json
from pathlib import Path

import pytest

from jaxmark.core.files import replacing, write_json, write_text_atomic


def test_text_is_written_as_given_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.txt"
    write_text_atomic(path, "één\r\ntwo\n")
    assert path.read_bytes() == "één\r\ntwo\n".encode()
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write_text_atomic(path, "new \ud800")
    with pytest.raises(RuntimeError, match="killed"), replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError("killed")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_temporary_file_is_hidden_in_the_same_folder_with_the_extension(tmp_path: Path) -> None:
    with replacing(tmp_path / "a.nii.gz") as temporary:
        assert temporary.parent == tmp_path
        assert temporary.name.startswith(".") and temporary.name.endswith(".nii.gz")
        temporary.write_text("whole")
        assert not (tmp_path / "a.nii.gz").exists()
    assert (tmp_path / "a.nii.gz").read_text() == "whole"


def test_json_round_trip(tmp_path: Path) -> None:
    tree = {"schema_version": 1, "x": [0.1, 1 / 3], "name": "ä", "none": None}
    write_json(tmp_path / "a.json", tree)
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == tree


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_refuses_numbers_that_json_lacks(tmp_path: Path, value: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"x": value})
    assert not list(tmp_path.iterdir())

import json
import os
from pathlib import Path

import pytest
from conftest import refused

from jaxmark.system.errors import InputError
from jaxmark.system.files import (
    read_json,
    read_sealed,
    replacing,
    sealed,
    user_cache,
    write_json,
    write_text_atomic,
)


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


def test_what_was_sealed_comes_back_and_a_change_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    tree = {"schema_version": 3, "x": [0.1, -1e-300], "name": "ä", "none": None}
    write_json(path, sealed(tree))
    assert read_sealed(path, 3) == tree
    path.write_bytes(path.read_bytes().replace(b"0.1", b"0.2"))
    refused(lambda: read_sealed(path, 3), path, "is damaged")
    write_json(path, tree)
    refused(lambda: read_sealed(path, 3), path, "is damaged")


def test_names_that_are_no_utf_8_are_kept(tmp_path: Path) -> None:
    # So Python names a file of the byte FF.
    write_json(tmp_path / "a.json", {"path": "\udcff"})
    assert read_json(tmp_path / "a.json") == {"path": "\udcff"}


BOMBS = {
    "[" * 10**6: "is not JSON",
    '{"a":' * 10**6: "is not JSON",
    '{"a": ' + "1" * 10**7 + "}": "is not JSON",
    "[1]": "is not a JSON object",
    '{"schema_version": ' + "[" * 500 + "]" * 500 + "}": "has schema version",
    '{"schema_version": "' + "x" * 10**7 + '"}': "has schema version xxx",
}


@pytest.mark.parametrize(("text", "problem"), BOMBS.items(), ids=range(len(BOMBS)))
def test_json_that_is_meant_to_do_harm(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    refused(lambda: read_json(path, 1), path, problem)
    with pytest.raises(InputError) as caught:
        read_json(path, 1)
    assert len(str(caught.value)) < 2100 + len(str(path))


def test_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    refused(lambda: read_json(path), path, "cannot be read: No such file")
    os.mkfifo(path)
    refused(lambda: read_json(path), path, "is not a file")
    path.unlink()
    with path.open("wb") as sparse:
        sparse.truncate(1 << 40)
    refused(lambda: read_json(path), path, "has 1099511627776 bytes")


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    refused(user_cache, "XDG_CACHE_HOME", "no home folder")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert user_cache() == Path("/somewhere/jaxmark")

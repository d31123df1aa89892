"""Models as one file: what is in it, how it is fetched, and what is refused."""

import hashlib
import http.server
import json
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from jaxmark.inference.packed import digest_of, folder_of, pack, unpack
from jaxmark.system.errors import InputError


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    """As training leaves it, with files that only have the right names."""
    folder = tmp_path / "run"
    names = ("config.json", "shape.json", ".lock", "logs/metrics.jsonl", "report/index.html")
    names += ("preparation/frame.json", "preparation/cases.csv", "preparation/contact_sheet_1.png")
    for step in (5, 10):
        for item in ("params/d/1", "meta/metadata", "optimizer/d/2", "iterator/metadata"):
            names += (f"checkpoints/{step}/{item}",)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    config = {"data": {"root": "/home/me/secret/heads", "suffix": ".nii"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "shape.json").write_text("{}")
    (folder / "calibration.json").write_text(json.dumps({"cases": ["A. Smith", "B. Jones"]}))
    return folder


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """Of the folder `tmp_path`."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(tmp_path))  # type: ignore[arg-type]

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def files(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


def test_what_prediction_needs_comes_back(workdir: Path, tmp_path: Path) -> None:
    file = tmp_path / "out" / "model.zip"
    assert pack(workdir, 10, file, {}) == digest_of(file)
    again = tmp_path / "again.zip"
    assert pack(workdir, 10, again, {}) == digest_of(file)
    found = files(folder_of(file, tmp_path / "cache"))
    # Nothing of whom it was trained on, and where.
    assert json.loads(found.pop("config.json"))["data"] == {"root": "heads", "suffix": ".nii"}
    assert json.loads(found.pop("calibration.json")) == {"cases": ["1", "2"]}
    assert found.pop("shape.json") == "{}"
    kept = ["checkpoints/10/meta/metadata", "checkpoints/10/params/d/1"]
    assert sorted(found) == [*kept, "preparation/frame.json"]
    assert all(name == text for name, text in found.items())


def test_a_work_dir_is_itself(workdir: Path, tmp_path: Path) -> None:
    assert folder_of(workdir, tmp_path / "cache") == workdir
    assert folder_of(tmp_path / "none.zip", tmp_path / "cache") == tmp_path / "none.zip"
    assert not (tmp_path / "cache").exists()


def test_a_url_is_fetched_once(workdir: Path, tmp_path: Path, url: str) -> None:
    file, cache = tmp_path / "model.zip", tmp_path / "cache"
    digest = pack(workdir, 10, file, {})
    address = f"{url}/model.zip#sha256={digest}"
    folder = folder_of(address, cache)
    assert "config.json" in files(folder) and [p.name for p in cache.iterdir()] == [digest]
    file.unlink()
    assert folder_of(address, cache) == folder
    # The same file by its path is the same folder.
    pack(workdir, 10, file, {})
    assert folder_of(file, cache) == folder


def test_another_file_is_refused(workdir: Path, tmp_path: Path, url: str) -> None:
    file, cache = tmp_path / "model.zip", tmp_path / "cache"
    pack(workdir, 10, file, {})
    digest = hashlib.sha256(b"another").hexdigest()
    with pytest.raises(InputError, match=f"has the SHA-256 {digest_of(file)}, not {digest}"):
        folder_of(f"{url}/model.zip#sha256={digest}", cache)
    assert list(cache.iterdir()) == []
    with pytest.raises(InputError, match="cannot be fetched: File not found"):
        folder_of(f"{url}/none.zip#sha256={digest}", cache)
    for address in (f"{url}/model.zip", f"{url}/model.zip#sha256=12"):
        with pytest.raises(InputError, match="has no digest: .*model.zip#sha256=DIGEST"):
            folder_of(address, cache)


def test_archives_that_are_no_models(tmp_path: Path) -> None:
    other, target = tmp_path / "other.zip", tmp_path / "there"
    other.write_bytes(b"PK none")
    with pytest.raises(InputError, match="other.zip: is not a whole zip archive"):
        unpack(other, target)
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("readme.txt", "x")
    with pytest.raises(InputError, match="holds no config.json"):
        unpack(other, target)
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("config.json", "{}")
        archive.writestr("../outside", "x")
    with pytest.raises(InputError, match="holds '../outside', which is not in its folder"):
        unpack(other, target)
    assert not target.exists() and not (tmp_path / "outside").exists()
    whole = other.read_bytes()
    other.write_bytes(whole.replace(b"{}", b"[]", 1))
    with pytest.raises(InputError, match="is not a whole zip archive"):
        unpack(other, target)

"""A trained model as one file to share: packing, fetching, unpacking.

The file is a zip archive with the part of a work dir that prediction needs: config, frame,
calibration, shapes and one checkpoint without optimiser; for a cross-validation these of every
fold. `--checkpoint` takes a path, or a URL with the SHA-256: `https://.../model.zip#sha256=DIGEST`.
The digest names the unpacked model in the cache, so it is fetched and unpacked only once.
"""

import hashlib
import json
import os
import shutil
import stat
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import IO, Any

from tqdm import tqdm

from jaxmark.config import Data
from jaxmark.data.arrays import replacing_folder
from jaxmark.data.cache import cache_folder
from jaxmark.inference.ensemble import fold_folder
from jaxmark.system.errors import InputError
from jaxmark.system.files import json_text, replacing

# Files and folders of a work dir that are packed.
FILES = ("config.json", "calibration.json", "shape.json")
FOLDERS = ("preparation",)
# Names and endings that are not packed: prediction needs none of them, and some name people.
LEFT_OUT = ("optimizer", "iterator", "left_out.csv", "cases.csv", ".png", ".lock")
# Fields of `config.data` with paths.
PATHS = {"root", "unpaired", "template", "template_transform", "template_mask", "shared_mask"}
PATHS |= {"cache"}
EXTENSION = ".zip"
_SCHEMES = ("https://", "http://", "file://")
_MARK = "#sha256="
_BLOCK = 1 << 20
# Limit for all files together; weights are megabytes. A foreign archive may unpack to any size.
_MOST_BYTES = 8 << 30
# One date for all files, so that a model always gives the same bytes.
_DATE = (1980, 1, 1, 0, 0, 0)
_TIMEOUT_S = 60.0


def pack(workdir: Path, step: int | Sequence[int], path: Path, instead: Mapping[str, bytes]) -> str:
    """Write the model of this step, or of each fold's step; return the file's SHA-256.

    Args:
      instead: file of the work dir -> bytes to write in its place.

    Raises:
      OSError: the file cannot be written.
    """
    with replacing(path) as temporary:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in sorted(_kept(workdir, step)):
                name = file.relative_to(workdir).as_posix()
                entry = zipfile.ZipInfo(name, _DATE)
                entry.compress_type = zipfile.ZIP_DEFLATED
                content = instead[name] if name in instead else file.read_bytes()
                if file.name in FILES:
                    content = json_text(without_names(json.loads(content))).encode()
                archive.writestr(entry, content)
    return digest_of(path)


def without_names(tree: dict[str, Any]) -> dict[str, Any]:
    """JSON without names of cases and folders, which may identify people and machines."""
    tree = dict(tree)
    if "cases" in tree:
        tree["cases"] = [str(number) for number, _ in enumerate(tree["cases"], 1)]
    if "data" in tree:
        names = {field: PurePath(tree["data"][field]).name for field in PATHS & {*tree["data"]}}
        tree["data"] = {**tree["data"], **names}
    return tree


def _kept(workdir: Path, step: int | Sequence[int]) -> Iterator[Path]:
    yield from (workdir / name for name in FILES if (workdir / name).is_file())
    if not isinstance(step, int):
        for fold, own in enumerate(step):
            # Folds have no calibration of their own.
            kept = _kept(fold_folder(workdir, fold), own)
            yield from (file for file in kept if file.name not in FILES[1:])
        return
    for folder in (*FOLDERS, f"checkpoints/{step}"):
        for file in (workdir / folder).rglob("*"):
            parts = file.relative_to(workdir).parts
            left = any(part.endswith(end) for part in parts for end in LEFT_OUT)
            if file.is_file() and not left:
                yield file


def folder_of(model: str | os.PathLike[str], cache: Path | None = None) -> Path:
    """The work dir of a path or URL; a packed model is unpacked into the cache.

    Args:
      cache: None: `jaxmark/models` in the user's folder for caches.

    Raises:
      InputError: a URL without digest; a file that can't be fetched or has another digest; an
        archive that holds no model.
      OSError: the cache cannot be written.
    """
    text = os.fspath(model)
    cache = cache or cache_folder(Data()) / "models"
    if text.startswith(_SCHEMES):
        url, _, digest = text.partition(_MARK)
        if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
            raise InputError(text, f"has no digest: {url}{_MARK}DIGEST, 64 hexadecimal digits")
        there = cache / digest
        if there.is_dir():
            return there
        path = cache / f"{digest}{EXTENSION}"
        if not (path.exists() and digest_of(path) == digest):
            _fetch(url, path, digest)
        unpack(path, there)
        path.unlink()
        return there
    path = Path(text)
    if path.suffix != EXTENSION or not path.is_file():
        return path
    there = cache / digest_of(path)
    if not there.is_dir():
        unpack(path, there)
    return there


def digest_of(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def unpack(path: Path, folder: Path) -> None:
    """Unpack the whole archive, or nothing."""
    try:
        with zipfile.ZipFile(path) as archive, replacing_folder(folder) as temporary:
            entries = archive.infolist()
            if sum(entry.file_size for entry in entries) > _MOST_BYTES:
                raise InputError(path, f"would have over {_MOST_BYTES >> 30} GiB unpacked")
            if "config.json" not in archive.namelist():
                raise InputError(path, "is no packed model: it holds no config.json (--mode=pack)")
            for entry in entries:
                link = stat.S_ISLNK(entry.external_attr >> 16)
                target = (temporary / entry.filename).resolve()
                if link or not target.is_relative_to(temporary.resolve()):
                    raise InputError(path, f"holds {entry.filename!r}, which is not in its folder")
                if not entry.is_dir():
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with archive.open(entry) as source, target.open("wb") as file:
                        shutil.copyfileobj(source, file, _BLOCK)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise InputError(path, f"is not a whole zip archive ({error})") from error


def _fetch(url: str, path: Path, digest: str) -> None:
    """Fetch a file and check its digest, with a progress bar."""
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as source, replacing(path) as there:
            size = int(source.headers.get("Content-Length") or 0) or None
            with (
                there.open("wb") as file,
                tqdm(
                    total=size, desc=f"fetching {path.name[:12]}", unit="B", unit_scale=True
                ) as bar,
            ):
                found = _copy(source, file, bar)
            if found != digest:
                raise InputError(url, f"has the SHA-256 {found}, not {digest}")
    except (urllib.error.URLError, TimeoutError, ValueError) as error:
        raise InputError(url, f"cannot be fetched: {getattr(error, 'reason', error)}") from error


def _copy(source: IO[bytes], file: IO[bytes], bar: tqdm) -> str:
    seen = hashlib.sha256()
    while block := source.read(_BLOCK):
        seen.update(block)
        file.write(block)
        bar.update(len(block))
        if bar.n > _MOST_BYTES:
            raise ValueError(f"over {_MOST_BYTES >> 30} GiB")
    return seen.hexdigest()

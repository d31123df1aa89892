"""Arrays in a cache: folders that are written whole or not at all, with checksums."""

import contextlib
import errno
import io
import os
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from jaxmark.system.errors import InputError
from jaxmark.system.files import naming
from jaxmark.system.interrupts import unfinished

# As `np.save` writes it. Not read by numpy, which uses Python's own parser: in 3.11 two threads
# must not be in that at once (cpython issue 106905), and damaged headers end it in many ways.
# Three axes, or the six of an image in cubes (`chunks`).
_HEADER = re.compile(
    rb"\{'descr': '(<f2|\|u1)', 'fortran_order': False, 'shape': "
    rb"\(((?:[1-9][0-9]{0,8}, ){2}(?:(?:[1-9][0-9]{0,8}, ){3})?[1-9][0-9]{0,8})\), \} *\n"
)


def npy(array: np.ndarray) -> memoryview:
    """The `.npy` file of an array (X, Y, Z), float16 or uint8; in memory.

    `np.save` to a file does not say that the disk is full.
    """
    content = io.BytesIO()
    np.save(content, np.ascontiguousarray(array), allow_pickle=False)
    return content.getbuffer()


def read_npy(path: Path, dtype: type[np.generic]) -> np.ndarray:
    """The array (X, Y, Z) of a file that `npy` made, in any number of threads.

    Raises:
      OSError, ValueError: the file cannot be read, or is no such file.
    """
    with path.open("rb") as file:
        shape = shape_of(file, dtype)
        return np.fromfile(file, dtype).reshape(shape)


def map_npy(path: Path, dtype: type[np.generic]) -> np.ndarray:
    """As `read_npy`, but what is not looked at stays on the disk."""
    with path.open("rb") as file:
        shape = shape_of(file, dtype)
        return np.memmap(file, dtype, "r", file.tell(), shape)


def shape_of(file: BinaryIO, dtype: type[np.generic], axes: int = 3) -> tuple[int, ...]:
    """Of the array that follows in the file; ValueError where that is no such array."""
    prefix = file.read(10)
    header = file.read(int.from_bytes(prefix[8:], "little"))
    found = _HEADER.fullmatch(header)
    if prefix[:8] != b"\x93NUMPY\x01\x00" or found is None:
        raise ValueError("not an array that jaxmark writes")
    kind, sizes = found.groups()
    shape = tuple(map(int, sizes.split(b", ")))
    if np.dtype(kind.decode()) != dtype:
        raise ValueError(f"an array of another type than {np.dtype(dtype)}")
    if len(shape) != axes:
        raise ValueError("not an array that jaxmark writes")
    return shape


def check_crc32(path: Path, crc32: int | None) -> None:
    """InputError where the file is not the one that was written."""
    checksum = 0
    try:
        with path.open("rb") as file:
            while piece := file.read(1 << 20):
                checksum = zlib.crc32(piece, checksum)
    except OSError as error:
        raise InputError(path, f"cannot be read: {error.strerror}") from error
    if checksum != crc32:
        raise InputError(path, "is damaged: its checksum is another one")


def write_folder(folder: Path, files: Mapping[str, bytes | memoryview]) -> None:
    """Write files into `folder`, in place of what is there, all or none; an OSError names it."""
    with replacing_folder(folder) as temporary:
        for name, content in files.items():
            (temporary / name).write_bytes(content)


@contextlib.contextmanager
def discarded(folder: Path) -> Iterator[None]:
    """After this block, or if the process ends in it, the folder and what is in it are deleted."""
    with unfinished(folder):
        try:
            yield
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def stored(folder: Path) -> Iterator[None]:
    """In this block there is such a folder; an error, or the end of the process, deletes it."""
    with unfinished(folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            yield
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise


@contextlib.contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Gives an empty folder; it takes the place of `folder` when the block ends without an error.

    Raises:
      OSError: it cannot be written; it names `folder`.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".writing-", dir=folder.parent))
    with unfinished(temporary), naming(folder, temporary):
        try:
            yield temporary
            _take_place(temporary, folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def _take_place(new: Path, folder: Path) -> None:
    """Rename a folder over another one, which others may be replacing at the same time."""
    if _renamed(new, folder):
        return
    old = new.with_name(f"{new.name}-old")
    with unfinished(old):
        with contextlib.suppress(FileNotFoundError):
            os.replace(folder, old)
        if not _renamed(new, folder):
            # Another one has just put its own there, which is as new.
            shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _renamed(new: Path, folder: Path) -> bool:
    """Whether it could be: a rename replaces nothing but an empty folder."""
    try:
        os.replace(new, folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True

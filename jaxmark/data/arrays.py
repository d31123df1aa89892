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

# A header as `np.save` writes it, with three axes, or the six of an image in cubes (`chunks`).
# NumPy would read it with Python's parser: in 3.11 two threads must not run that at once (cpython
# issue 106905), and a damaged header raises many kinds of errors in it.
_HEADER = re.compile(
    rb"\{'descr': '(<f2|\|u1)', 'fortran_order': False, 'shape': "
    rb"\(((?:[1-9][0-9]{0,8}, ){2}(?:(?:[1-9][0-9]{0,8}, ){3})?[1-9][0-9]{0,8})\), \} *\n"
)


def npy(array: np.ndarray) -> memoryview:
    """The bytes of an `.npy` file with an array (X, Y, Z), float16 or uint8.

    In memory, because `np.save` to a file does not report a full disk.
    """
    content = io.BytesIO()
    np.save(content, np.ascontiguousarray(array), allow_pickle=False)
    return content.getbuffer()


def read_npy(path: Path, dtype: type[np.generic]) -> np.ndarray:
    """The array (X, Y, Z) of a file that `npy` made; several threads may read at once.

    Raises:
      OSError, ValueError: the file cannot be read, or was not made by `npy`.
    """
    with path.open("rb") as file:
        shape = shape_of(file, dtype)
        return np.fromfile(file, dtype).reshape(shape)


def map_npy(path: Path, dtype: type[np.generic]) -> np.ndarray:
    """As `read_npy`, but reads only the parts that are used, when they are used."""
    with path.open("rb") as file:
        shape = shape_of(file, dtype)
        return np.memmap(file, dtype, "r", file.tell(), shape)


def shape_of(file: BinaryIO, dtype: type[np.generic], axes: int = 3) -> tuple[int, ...]:
    """Reads the header: the array's shape; ValueError for another type or number of axes."""
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
    """Raises InputError if the file's checksum is not `crc32`."""
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
    """Replaces `folder` by one with these files, wholly or not at all; an OSError names it."""
    with replacing_folder(folder) as temporary:
        for name, content in files.items():
            (temporary / name).write_bytes(content)


@contextlib.contextmanager
def discarded(folder: Path) -> Iterator[None]:
    """Deletes the folder and its files after this block, or if the process ends in it."""
    with unfinished(folder):
        try:
            yield
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def stored(folder: Path) -> Iterator[None]:
    """Makes the folder; an error in this block, or the end of the process, deletes it."""
    with unfinished(folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            yield
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise


@contextlib.contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Yields an empty folder, which replaces `folder` when the block ends without an error.

    Raises:
      OSError: the folder cannot be written; the error names `folder`.
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
    """Renames `new` over `folder`, which another process may be replacing at the same time."""
    if _renamed(new, folder):
        return
    old = new.with_name(f"{new.name}-old")
    with unfinished(old):
        with contextlib.suppress(FileNotFoundError):
            os.replace(folder, old)
        if not _renamed(new, folder):
            # Another process has just put its folder there, which is as new.
            shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _renamed(new: Path, folder: Path) -> bool:
    """Renames `new`; False if `folder` is not empty: a rename replaces only empty folders."""
    try:
        os.replace(new, folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True

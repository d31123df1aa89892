"""One process at a time in a folder: the operating system's lock, with its owner's name in it."""

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from jaxmark.system.errors import InputError

FILE = ".lock"
# The file system has no locks, as some of clusters.
_WITHOUT = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)


class InUseError(InputError):
    """Another process is in the folder."""


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """The folder, which is made, belongs to this process until the block, or the process, ends.

    The lock dies with its process, however that ends; the file stays, and means nothing.

    Raises:
      InUseError: another process is in the folder; says which, where, and for how long.
      OSError: the folder can't be written.
    """
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / FILE).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise InUseError(folder, f"is in use by {_owner(file.read())}") from error
        except OSError as error:
            if error.errno not in _WITHOUT:
                raise
        else:
            file.seek(0)
            file.truncate()
            owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.time()}
            file.write(json.dumps(owner))
            file.flush()
        try:
            yield
        finally:
            # Where nothing came of the work there is to be no trace of it.
            if made and os.listdir(folder) == [FILE]:
                (folder / FILE).unlink()
                folder.rmdir()


def _owner(text: str) -> str:
    try:
        owner = json.loads(text)
        minutes = (time.time() - float(owner["since"])) / 60
        return f"process {owner['pid']} on {owner['host']}, for {minutes:.1f} minutes"
    except (ValueError, TypeError, KeyError):
        return "another process"

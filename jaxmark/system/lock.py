"""One process at a time in a folder, by a lock file that names its owner."""

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
# Errors of a file system without locks, as some clusters have.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)


class InUseError(InputError):
    """Another process is in the folder."""


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Makes the folder and keeps other processes out of it until the block or this process ends.

    The lock ends with its process, even a killed one. The file that stays locks nothing.

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
            if error.errno not in _NO_LOCKS:
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
            # A new folder that got no other file is removed again.
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

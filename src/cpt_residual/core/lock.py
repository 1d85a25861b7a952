"""One builder per artifact. The kernel releases the lock when its holder dies, however it dies.

Locks only save compute: that no wrong artifact is published is the work of the atomic rename.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from cpt_residual.errors import ArtifactError, BusyError

_TRIES = 15
_PAUSE_SECONDS = 0.01
_UNUSABLE = {errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EACCES, errno.EPERM, errno.EROFS}


class Holder(BaseModel):
    """Who holds a lock."""

    model_config = ConfigDict(frozen=True)

    pid: int
    host: str
    since: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}"


@contextmanager
def hold(path: Path, *, name: str) -> Generator[None]:
    """Hold the lock file `path` for building `name`; BusyError naming the holder if taken.

    Its holder, and nobody else, may remove the file."""
    handle = _locked(path, name)
    try:
        _write_holder(handle)
        yield
    finally:
        os.close(handle)  # the holder's name stays in the file, the lock does not


def describe_holder(path: Path) -> str | None:
    """Who holds the lock `path` right now, None when nobody does. Creates nothing."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read_holder(path) or "another process"
    except OSError as error:
        raise _unusable(path, error) from error
    finally:
        os.close(handle)
    return None


def _open(path: Path) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise _unusable(path, error) from error


def _locked(path: Path, name: str) -> int:
    """A handle that holds the lock of the file that `path` names."""
    while True:
        handle = _open(path)
        try:
            _take(handle, path, name)
            if _is_at(handle, path):
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # its last holder has removed it: whoever comes next locks another file


def _take(handle: int, path: Path, name: str) -> None:
    """Try for a moment: `describe_holder` of another process may hold it for microseconds."""
    for _ in range(_TRIES):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_PAUSE_SECONDS)
        except OSError as error:
            raise _unusable(path, error) from error
        else:
            return
    who = _read_holder(path) or "another process"
    raise BusyError(
        f"{name} is busy",
        problems=[f"built right now by {who}"],
        remedy="Wait for it to finish and run the same command again: what is ready by "
        "then is reused. A lock ends with its process; there is nothing to delete.",
    )


def _is_at(handle: int, path: Path) -> bool:
    """Whether `path` still names the open file."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _unusable(path: Path, error: OSError) -> Exception:
    if error.errno not in _UNUSABLE:
        return error
    return ArtifactError(
        f"the store cannot be locked at {path}: {error.strerror}",
        remedy="Set paths.root to a directory that can be written and whose file system "
        "supports locks.",
    )


def _write_holder(handle: int) -> None:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    who = {"pid": os.getpid(), "host": socket.gethostname(), "since": now}
    os.ftruncate(handle, 0)
    os.pwrite(handle, json.dumps(who).encode(), 0)


def _read_holder(path: Path) -> str | None:
    try:
        return str(Holder.model_validate_json(path.read_bytes()))
    except (OSError, ValidationError):
        return None

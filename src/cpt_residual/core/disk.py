"""Free disk space: checked before a build, reported when it runs out during one."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from cpt_residual.errors import ArtifactError, DiskSpaceError

_REMEDY = (
    "Nothing was published; checkpoints are kept. Free some space (python -m cpt_residual.cli gc "
    "--root DIR lists what no run refers to; add --delete to remove it) or set paths.root to "
    "another disk, then run the same command again."
)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the last: a limit on the size of files
_STEP = 1024


def format_bytes(count: float) -> str:
    """A size for people, in powers of 1024: `1.5 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < _STEP:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= _STEP
    return f"{count:.1f} TiB"


def free_bytes(path: Path) -> int:
    """Bytes that this user may still write at `path` (or where it would be created)."""
    place = path.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def check_free_space(path: Path, needed_bytes: int) -> None:
    """DiskSpaceError unless `needed_bytes` can be written at `path`."""
    found = free_bytes(path)
    if found < needed_bytes:
        raise _too_little(path, needed_bytes, found)


def require_writable(path: Path) -> None:
    """ArtifactError when a look at the directories says that `path` cannot be made or replaced."""
    place = path.absolute()
    while not place.exists():
        place = place.parent
    folder = place if place.is_dir() else place.parent
    if place != path.absolute() and not place.is_dir():
        reason = f"{place} is not a directory"
    elif not os.access(folder, os.W_OK | os.X_OK):
        reason = f"{folder} is read-only"
    else:
        return
    raise ArtifactError(
        f"{path} cannot be written: {reason}", remedy="Nothing was done. Choose another place."
    )


@contextmanager
def writing(path: Path) -> Generator[None]:
    """Around work that writes `path` and reads nothing: what the system refuses is the user's to
    fix, a DiskSpaceError for a full disk, else an ArtifactError."""
    try:
        with FullDiskReport(path, 0):
            yield
    except DiskSpaceError as error:
        remedy = "Free some space, or choose a place on another disk, then run it again."
        raise DiskSpaceError(error.what, problems=error.problems, remedy=remedy) from error
    except OSError as error:
        raise ArtifactError(
            f"{path} cannot be written: {error.strerror or error}",
            remedy="Choose a place that can be written, then run it again.",
        ) from error


class FullDiskReport:
    """Around work that writes: "no space left" in any dress becomes a DiskSpaceError.

    The numeric libraries report it as their own exception types, so the text counts too. All
    other exceptions pass untouched.
    """

    def __init__(self, path: Path, needed_bytes: int) -> None:
        self._path = path
        self._needed_bytes = needed_bytes

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None and _means_full(error):
            found = free_bytes(self._path)
            raise _too_little(self._path, self._needed_bytes, found, str(error)) from error


def _means_full(error: BaseException) -> bool:
    if isinstance(error, DiskSpaceError) or not isinstance(error, Exception):
        return False
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    return any(os.strerror(code) in str(error) for code in _FULL)


def _too_little(path: Path, needed: int, found: int, said: str = "") -> DiskSpaceError:
    wanted = f"{format_bytes(needed)} ({needed:,} bytes)" if needed else "more than there is"
    return DiskSpaceError(
        f"not enough disk space at {path}",
        problems=[
            f"needed: {wanted}",
            f"found:  {format_bytes(found)} ({found:,} bytes)",
            *([f"error:  {' '.join(said.split())[:200]}"] if said else []),
        ],
        remedy=_REMEDY,
    )

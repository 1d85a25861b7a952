"""Atomic, resumable output directories.

Work on `NAME` goes to `.NAME.partial/out` beside it. The journal `.NAME.partial/journal.json`,
there before anything else, says whose directory that is and which shards are on the disk for good;
a later call with the same stamp (same inputs, same recipe) takes over those that nobody has written
to since, and starts afresh with any other. A lock beside it keeps others away. One rename
publishes; the journal goes last, so that after a kill between the two it is known what was
published.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Generator, Iterable, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from pydantic import Field, ValidationError

from cpt_residual.base_model import Frozen
from cpt_residual.core.disk import FullDiskReport
from cpt_residual.core.files import list_files, sync_directory, sync_tree, write_json_atomic
from cpt_residual.core.lock import hold
from cpt_residual.errors import (
    ArtifactError,
    BusyError,
    CptResidualError,
    DiskSpaceError,
    FinalCheckError,
)
from cpt_residual.modeling.side_files import json_object
from cpt_residual.weights.maths.kernels import MergeSums

_JOURNAL, _CONTENT = "journal.json", "out"
_FORMAT = "cpt_residual.staging"
_IN_THE_WAY = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR, errno.EBUSY)


class _Done(Frozen):
    """A file that is complete, and when it was written last: another time is another file."""

    num_bytes: int
    mtime_ns: int
    sums: MergeSums


class _Journal(Frozen):
    """stamp: what the work is for, None for work that nobody takes over. side_stamp: what its files
    besides the shards are made from. inode: of the directory that is about to become the output, or
    has."""

    format: Literal["cpt_residual.staging"] = _FORMAT
    stamp: str | None = None
    side_stamp: str | None = None
    files: dict[str, _Done] = Field(default_factory=dict)
    inode: int | None = None


class OutputFolder:
    """`with OutputFolder(out, stamp=...) as folder:` gives the directory `folder.path`, whose files
    become those of `out` with `publish`; without it they go when the block ends.

    An error of the user's to fix removes the work, unless the disk is full, or the work is
    complete and only its last check failed or its place is taken; a kill or an interrupt leaves it
    for the next call. With `stamp` None nothing outlasts the block. `side_stamp`: the identity of
    what is written besides the shards; a later call with another one keeps the shards, but is not
    satisfied by what was published. `published`: it is the output already; when the block begins,
    because a call that was killed came so far.

    Raises ArtifactError when `out` holds anything, lies in one of `inputs` or cannot be written,
    and for files in its place that are not ours; BusyError when another process works on it.
    """

    def __init__(
        self,
        out: Path,
        *,
        stamp: str | None,
        side_stamp: str | None = None,
        inputs: Iterable[Path] = (),
    ) -> None:
        self.out = _resolved(out)
        self._place = _place_of(self.out)
        self._journal: _Journal = _Journal(stamp=stamp, side_stamp=side_stamp)
        self._inputs = tuple(inputs)
        self._sealed = self.published = False
        self._lock = ExitStack()

    def __enter__(self) -> Self:
        require_free(self.out)
        require_apart(self.out, self._inputs)
        with ExitStack() as stack:
            stack.enter_context(_alone(self.out))
            with FullDiskReport(self.out.parent, 0):
                self._take_over()
            self._lock = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._lock, suppress(OSError):  # what cannot be removed now is the next call's
            if not self._outlasts(error):
                _remove(self._place)
            elif isinstance(error, DiskSpaceError) and not self.published:
                self._drop_unfinished()

    @property
    def path(self) -> Path:
        """Where the files lie; `out` itself once they are published."""
        return self.out if self.published else self._place / _CONTENT

    @property
    def done(self) -> Mapping[str, MergeSums]:
        """Files that are complete, with the sums over their elements."""
        return {name: done.sums for name, done in self._journal.files.items()}

    def start(self, shard: str) -> Path:
        """Where to write a shard that is not done; what a kill has left there is removed."""
        path = self.path / shard
        path.unlink(missing_ok=True)
        return path

    def complete(self, shard: str, sums: MergeSums) -> None:
        """Records a shard whose bytes have been flushed to disk."""
        self._record({shard: sums})

    def complete_all(self) -> None:
        """Records every file that is there, after forcing it to the disk."""
        sync_tree(self.path)
        self._record(dict.fromkeys(list_files(self.path).files, MergeSums()))

    def seal(self) -> None:
        """Says that the work is complete, and forces all of it to the disk. What goes wrong from
        here on does not remove it. Outputs that belong together are sealed before the first of them
        is published."""
        with FullDiskReport(self.out.parent, 0):
            sync_tree(self.path)
            if not self.published:
                inode = self.path.stat().st_ino
                self._write(self._journal.model_copy(update={"inode": inode}))
        self._sealed = True

    def publish(self) -> None:
        """The work becomes the output."""
        if not self._sealed:
            self.seal()
        if self.published:
            return
        try:
            self.path.rename(self.out)
        except OSError as error:
            if error.errno not in _IN_THE_WAY:
                raise
            raise ArtifactError(
                f"The output {self.out} cannot be put into its place: {error.strerror}",
                remedy="It must be absent, or an empty directory that can be replaced. Fix that, "
                "then run the same command again.",
            ) from error
        self.published = True
        sync_directory(self._place)
        sync_directory(self.out.parent)

    def _take_over(self) -> None:
        found = _journal_in(self._place)
        same = found is not None and found.stamp is not None and found.stamp == self._journal.stamp
        if not _is_free(self.out):
            if found is None or not _is_of(found, self.out):
                raise _taken(self.out)
            if not same or found.side_stamp != self._journal.side_stamp:
                # only the journal is left, of a call that was killed at its very end
                _remove(self._place)
                raise _taken(self.out)
            self._journal, self.published = found, True
            return
        if found is not None and same:
            files = {
                name: done
                for name, done in found.files.items()
                if _state(self.path / name) == (done.num_bytes, done.mtime_ns)
            }
            self._journal = self._journal.model_copy(update={"files": files})
        elif found is not None:
            _remove(self._place)
        self._place.mkdir(exist_ok=True)
        self._write(self._journal)
        self.path.mkdir(exist_ok=True)
        self._drop_unfinished()

    def _drop_unfinished(self) -> None:
        """Leaves nothing but what the journal lists."""
        listing = list_files(self.path)
        for name in (*listing.files, *listing.others):
            if name not in self._journal.files:
                (self.path / name).unlink()
        for folder in reversed(listing.directories[1:]):
            if not any(folder.iterdir()):
                folder.rmdir()

    def _outlasts(self, error: BaseException | None) -> bool:
        if error is None or self._journal.stamp is None:
            return False
        if isinstance(error, DiskSpaceError | FinalCheckError):
            return bool(self._journal.files)
        return self._sealed or not isinstance(error, CptResidualError)

    def _record(self, sums: Mapping[str, MergeSums]) -> None:
        files = {
            name: _Done(num_bytes=stat.st_size, mtime_ns=stat.st_mtime_ns, sums=each)
            for name, each in sums.items()
            for stat in [(self.path / name).stat()]
        }
        self._write(self._journal.model_copy(update={"files": {**self._journal.files, **files}}))

    def _write(self, journal: _Journal) -> None:
        write_json_atomic(self._place / _JOURNAL, journal)
        self._journal = journal


@contextmanager
def fresh_directory(out: Path, *, inputs: Iterable[Path] = ()) -> Generator[Path]:
    """A new directory beside `out` that becomes `out` on success and vanishes on failure.

    Raises as OutputFolder does: an output that is or lies in an input, or holds anything, is
    refused.
    """
    with OutputFolder(out, stamp=None, inputs=inputs) as folder, FullDiskReport(folder.out, 0):
        yield folder.path
        folder.publish()


def require_free(out: Path) -> None:
    """ArtifactError unless `out` is absent or an empty directory in a place that can be written, or
    was published by a call that did not live to say so."""
    found = _resolved(out)
    if not _is_free(found):
        try:
            journal = _journal_in(_place_of(found))
        except ArtifactError:
            journal = None
        if journal is None or not _is_of(journal, found):
            raise _taken(out)
    place = found.parent
    while not place.exists():
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise ArtifactError(
            f"The output {out} cannot be written: {place} is "
            f"{'read-only' if place.is_dir() else 'not a directory'}",
            remedy="Nothing was done. Choose another directory.",
        )


def require_apart(out: Path, inputs: Iterable[Path]) -> None:
    """ArtifactError when `out` lies in one of the directories `inputs`, or is one."""
    place = out.resolve()
    around = sorted({str(path) for path in inputs if place.is_relative_to(path.resolve())})
    if around:
        raise ArtifactError(
            f"The output {out} lies in what is read",
            problems=[f"input: {path}" for path in around],
            remedy="Nothing was done. Inputs are never written to. Choose a directory outside.",
        )


@contextmanager
def _alone(out: Path) -> Generator[None]:
    """Nobody else works on `out`, in any process of any host that shares the file's locks."""
    lock = out.parent / f"{_place_of(out).name}.lock"
    with ExitStack() as stack:
        try:
            with FullDiskReport(out.parent, 0):
                stack.enter_context(hold(lock, name=f"The output {out}"))
        except BusyError:
            raise
        except ArtifactError as error:
            raise ArtifactError(
                f"The output {out} cannot be locked",
                problems=[error.what],
                remedy="Nothing was done. Choose a directory that can be written, on a file system "
                "that supports locks.",
            ) from error
        stack.callback(lock.unlink, missing_ok=True)
        yield


def _resolved(out: Path) -> Path:
    """An absolute path, so that `.` has a name; a link stays one, to be refused."""
    return out.resolve() if out.name in ("", "..") else out.parent.resolve() / out.name


def _place_of(out: Path) -> Path:
    return out.parent / f".{out.name.removeprefix('.')}.partial"


def _is_free(out: Path) -> bool:
    """Whether there is nothing, or an empty directory."""
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        return False
    return not out.exists() or not any(out.iterdir())


def _taken(out: Path) -> ArtifactError:
    return ArtifactError(
        f"The output {out} exists and is not an empty directory",
        remedy="Nothing is overwritten. Choose another directory or remove it.",
    )


def _is_of(journal: _Journal, out: Path) -> bool:
    """Whether `out` is what the journal's call was about to publish."""
    if journal.inode is None or out.is_symlink() or out.stat().st_ino != journal.inode:
        return False
    return all(
        _state(out / name) == (done.num_bytes, done.mtime_ns)
        for name, done in journal.files.items()
    )


def _state(path: Path) -> tuple[int, int] | None:
    """Size and time of the last change of a file, None where there is none."""
    stat = path.stat() if path.is_file() else None
    return stat and (stat.st_size, stat.st_mtime_ns)


def _journal_in(place: Path) -> _Journal | None:
    """The journal of what lies in `place`, None for nothing; one without a stamp when nothing of it
    can be used. Raises ArtifactError for what we have not put there."""
    if not os.path.lexists(place):
        return None
    if place.is_symlink() or not place.is_dir():
        raise _in_the_way(place)
    try:
        raw = (place / _JOURNAL).read_bytes()
        if json_object(raw).get("format") == _FORMAT:
            return _Journal.model_validate_json(raw)
    except ValidationError:
        return _Journal()  # of another version
    except (FileNotFoundError, IsADirectoryError, ValueError):
        begun = f".{_JOURNAL}."  # a kill before the first journal was whole, or after the last went
        if all(entry.name.startswith(begun) for entry in place.iterdir()):
            return _Journal()
    raise _in_the_way(place)


def _in_the_way(place: Path) -> ArtifactError:
    return ArtifactError(
        f"{place} is in the way, and this program has not made it",
        remedy="Unfinished work would go there. Nothing was removed: move it, or choose another "
        "output.",
    )


def _remove(place: Path) -> None:
    """Removes work of ours; the journal goes last, so that a kill leaves what is known as ours."""
    if not place.is_dir():
        return
    for entry in place.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name != _JOURNAL:
            entry.unlink()
    (place / _JOURNAL).unlink(missing_ok=True)
    place.rmdir()

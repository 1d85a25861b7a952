"""Atomic file writes, durable directories, removal by rename."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, JsonValue

FileState = tuple[int, int, int, int]
"""Size, both times of change (ns), inode."""


def file_state(path: Path) -> FileState | None:
    """What changes when somebody writes to a file; None for one that is not there."""
    try:
        stat = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino


def text_of_name(name: str) -> str:
    """A file's name as text that every encoding of records can say; bytes that are no UTF-8 are
    shown as `\\xff`."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def unique_name(stem: str) -> str:
    """`stem` with a random end: no two processes or hosts get the same name."""
    return f"{stem}.{os.urandom(6).hex()}"


@contextmanager
def replacing(path: Path, *, temporary_in: Path | None = None) -> Generator[Path]:
    """Gives a name to write a file or directory to; at the end of the block it replaces `path`.

    Readers see the old content or the new one, never a part. Nothing is left of a block that
    raises. The temporary name lies beside `path`, or in `temporary_in` (same file system) where a
    leftover of a kill would disturb; the directory is made.
    """
    folder = temporary_in or path.parent
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / unique_name(f".{path.name}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        remove_tree(temporary, folder)


def write_json_atomic(
    path: Path, value: JsonValue | BaseModel, *, temporary_in: Path | None = None
) -> None:
    """Write sorted, indented JSON, whole and durable (see `replacing`). Numbers that JSON does not
    have (NaN) are an error."""
    plain = value.model_dump(mode="json", by_alias=True) if isinstance(value, BaseModel) else value
    text = json.dumps(plain, sort_keys=True, indent=1, allow_nan=False, ensure_ascii=False)
    with (
        replacing(path, temporary_in=temporary_in) as temporary,
        temporary.open("w", encoding="utf-8") as stream,
    ):
        stream.write(text + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    sync_directory(path.parent)


def copy_files(source: Path, target: Path, *, leave_out: Collection[str] = ()) -> None:
    """Copy the contents of all files below `source` to `target`, over what is there, without those
    named in `leave_out`. Modes are not copied: a copy of a write-protected tree can be written."""
    listing = list_files(source)
    for folder in listing.directories:
        (target / folder.relative_to(source)).mkdir(parents=True, exist_ok=True)
    for name, path in listing.files.items():
        if path.name not in leave_out:
            shutil.copyfile(path, target / name)


def append_line(path: Path, line: str) -> bool:
    """Append a line to a log whole or not at all: False when it cannot be written (full disk)."""
    data = f"{line}\n".encode()
    try:
        with path.open("ab", buffering=0) as stream:
            before = stream.seek(0, os.SEEK_END)
            try:
                if stream.write(data) == len(data):
                    return True
            except OSError:
                pass
            stream.truncate(before)
    except OSError:
        pass
    return False


def sync_file(path: Path) -> None:
    """Force a file's bytes to the disk (a rename alone survives a kill, not a power cut)."""
    _sync(path, os.O_RDONLY)


def sync_directory(path: Path) -> None:
    """Force a directory's entries to the disk."""
    _sync(path, os.O_RDONLY | os.O_DIRECTORY)


def sync_tree(folder: Path) -> None:
    """Force every file and every entry below `folder` to the disk, files behind links too."""
    listing = list_files(folder)
    for path in listing.files.values():
        sync_file(path)
    for directory in reversed(listing.directories):
        sync_directory(directory)


def _sync(path: Path, flags: int) -> None:
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_tree(path: Path, trash: Path) -> None:
    """Remove a file or directory: first one rename into `trash`, then the slow part.

    A kill in between leaves nothing at `path` and garbage in `trash`, never half a directory.
    """
    if not os.path.lexists(path):
        return
    trash.mkdir(parents=True, exist_ok=True)
    doomed = path
    if path.parent != trash:
        doomed = trash / unique_name(f"{path.parent.name}-{path.name}")
        path.rename(doomed)
    if doomed.is_dir() and not doomed.is_symlink():
        shutil.rmtree(doomed, ignore_errors=True)  # what is left is garbage that gc finds
    else:
        doomed.unlink(missing_ok=True)


@dataclass
class Listing:
    """What a directory tree holds, by path relative to its root (posix, sorted).

    files: regular files and links to files; links: those of `files` that are links;
    directories: the root and all below; others: anything else (broken links, links to
    directories, sockets), which an artifact must not hold.
    """

    files: dict[str, Path] = field(default_factory=dict[str, Path])
    links: set[str] = field(default_factory=set[str])
    directories: list[Path] = field(default_factory=list[Path])
    others: list[str] = field(default_factory=list[str])


def list_files(root: Path) -> Listing:
    """List a tree without following links to directories."""
    listing = Listing()
    _list_into(listing, root, "")
    listing.files = dict(sorted(listing.files.items()))
    return listing


def _list_into(listing: Listing, folder: Path, prefix: str) -> None:
    listing.directories.append(folder)
    with os.scandir(folder) as entries:
        for entry in entries:
            name = prefix + entry.name
            if entry.is_dir(follow_symlinks=False):
                _list_into(listing, Path(entry.path), name + "/")
            elif entry.is_file():
                listing.files[name] = Path(entry.path)
                if entry.is_symlink():
                    listing.links.add(name)
            else:
                listing.others.append(name)

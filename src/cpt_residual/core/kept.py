"""What spares work when the same is asked again: small files in the user's cache directory.

Nothing depends on one: a file that is not there, not whole or somebody else's is made again, and
where none can be written, none is. A file's name says all that its content depends on.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from cpt_residual.core.files import unique_name

_DIGEST_BYTES = 32
_MOST_BYTES = 64 << 20


def user_folder() -> Iterator[Path]:
    """Where a user's files are kept; nothing for a user without a home that is there."""
    with contextlib.suppress(RuntimeError, OSError):
        home = Path.home()
        if home.is_absolute() and home.is_dir():
            yield home / ".cache" / "cpt_residual"


def recall(name: str, folders: Iterable[Path]) -> bytes | None:
    """What `keep` was given, from the first folder that has it; None where none has."""
    for folder in folders:
        content = _read(folder / name)
        if content is not None:
            return content
    return None


def keep(name: str, content: bytes, folders: Iterable[Path]) -> None:
    """Writes what `recall` reads, whole or not at all, to the first folder that takes it."""
    for folder in folders:
        if _write(folder / name, content):
            return


def _read(path: Path) -> bytes | None:
    try:
        number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # may be anything
        with open(number, "rb") as file:  # noqa: PTH123 - an open file
            state = os.fstat(number)
            mine = state.st_uid in (0, os.geteuid())
            if not (mine and stat.S_ISREG(state.st_mode) and state.st_size <= _MOST_BYTES):
                return None
            raw = file.read()
    except OSError:
        return None
    digest, content = raw[:_DIGEST_BYTES], raw[_DIGEST_BYTES:]
    return content if _digest(path.name, content) == digest else None


def _write(path: Path, content: bytes) -> bool:
    temporary = path.with_name(unique_name(f".{path.name}"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(_digest(path.name, content) + content)
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        return False
    return True


def _digest(name: str, content: bytes) -> bytes:
    """Of the name too: a file that was moved to another's place is not that one."""
    return hashlib.sha256(name.encode() + b"\0" + content).digest()

"""Looking for files in folders. What the system refuses to show is remembered, where `glob` and
`os.walk` leave it out without a word."""

from __future__ import annotations

import fnmatch
import glob
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from cpt_residual.config.home import expanded


class FolderSearch:
    """One search. `refused`: a line for everything that could not be looked at, in that order."""

    def __init__(self) -> None:
        self._refused: dict[str, str] = {}

    @property
    def refused(self) -> list[str]:
        return [f"{path}: {why}" for path, why in self._refused.items()]

    def refuse(self, path: Path, why: str) -> None:
        """Remember that `path` cannot be looked at, unless that is known already."""
        self._refused.setdefault(str(path), why)

    def matching(self, pattern: str) -> list[Path]:
        """Where a file, a folder or a glob of these (`**` is any depth) may be; `*` and `**` stand
        for no hidden name. What is no glob is not looked for."""
        path = expanded(pattern)
        places = [Path(path.anchor)]
        parts = path.parts[1:] if path.anchor else path.parts
        for part in (*parts, "*") if parts[-1:] == ("**",) else parts:
            if part == "**":
                found = (folder for place in places for folder, _ in self.walk(place))
                places = list(dict.fromkeys(found))
            elif glob.has_magic(part):
                places = [match for place in places for match in self._matches(place, part)]
            else:
                places = [place / part for place in places]
        return places

    def _matches(self, place: Path, part: str) -> list[Path]:
        """What is called `part` (`notes[1].txt`, which as a glob is not its own match), else what
        matches it."""
        if "[" in part and os.path.lexists(place / part):
            return [place / part]
        names = self._names(place, hidden=part.startswith("."))
        return [place / name for name in names if fnmatch.fnmatchcase(name, part)]

    def walk(self, folder: Path) -> Iterator[tuple[Path, list[Path]]]:
        """`folder` and all below it, each with what is in it and is no folder, but for hidden
        names. Links are followed, and each folder comes once: as itself where it is below `folder`,
        else by its first link in the order of their paths."""
        seen: set[Path] = set()
        waiting = [folder] if self.is_folder(folder) else []
        while waiting:
            links: list[Path] = []
            while waiting:
                here = waiting.pop()
                real = here.resolve()
                if real in seen:
                    continue
                seen.add(real)
                entries = [here / name for name in self._names(here)]
                folders = [entry for entry in entries if self.is_folder(entry)]
                inside = set(folders)
                yield here, [entry for entry in entries if entry not in inside]
                links += [entry for entry in folders if entry.is_symlink()]
                waiting += [entry for entry in folders if not entry.is_symlink()]
            waiting = sorted(links, reverse=True)

    def is_folder(self, path: Path) -> bool:
        return stat.S_ISDIR(self._mode(path))

    def is_file(self, path: Path) -> bool:
        return stat.S_ISREG(self._mode(path))

    def is_nothing(self, path: Path) -> bool:
        return not self._mode(path)

    def _mode(self, path: Path) -> int:
        """What `path`, or what it links to, is; 0 when there is nothing."""
        try:
            return path.stat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            return 0
        except OSError as error:
            self.refuse(path, error.strerror or str(error))
            return 0
        except ValueError as error:  # a zero byte
            self.refuse(path, str(error))
            return 0

    def _names(self, folder: Path, *, hidden: bool = False) -> list[str]:
        """The sorted names in `folder`; none where it is no folder."""
        try:
            names = sorted(os.listdir(folder))  # noqa: PTH208 - names, not paths
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            self.refuse(folder, error.strerror or str(error))
            return []
        return [name for name in names if hidden or not name.startswith(".")]

"""Which files a local corpus has: what their names say of their kind, in which order they are read,
and that they are still the files that were pinned. Nothing heavy is imported: the plan asks too."""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from cpt_residual.config.home import expanded
from cpt_residual.core.hashing import file_sha256
from cpt_residual.data.documents.problems import Problems
from cpt_residual.data.readers.folders import FolderSearch
from cpt_residual.errors import CorpusError, did_you_mean

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
_COMPRESSIBLE = (".jsonl", ".csv", ".txt")
SUFFIXES = (
    *(kind + packed for kind in _COMPRESSIBLE for packed in ("", *COMPRESSIONS)),
    ".parquet",
)
"""Every kind of file that can be read, by the end of its name (any case)."""

_REMEDY = "Nothing was read. Fix the files, or name others in the corpus's `files`."


def suffix_of(path: Path) -> str | None:
    """The one of `SUFFIXES` that the file's name ends with; None: of no known kind."""
    name = path.name.lower()
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)


def resolve_files(patterns: Sequence[str]) -> list[Path]:
    """The files that `patterns` name: sorted by path, each once.

    A pattern is a file, a folder or a glob of these (`**` is any depth). A folder stands for all
    files of known kinds below it; hidden ones and other kinds in it do not belong to the corpus,
    while a file that is named, also by a glob, has to be of a known kind. `part[1].jsonl` is the
    file of that name where there is one. A file with several paths has the place of the one with
    the fewest links in it (then the shortest, then the first).
    Raises CorpusError with all that is not there or cannot be read.
    """
    problems = Problems("local corpus: the files cannot be read", _REMEDY)
    found: set[Path] = set()
    refused: dict[str, None] = {}
    for pattern in patterns:
        search = FolderSearch()
        matches = search.matching(pattern)
        files = {match for match in matches if search.is_file(match)}
        for folder in matches:
            files.update(_below(folder, search))
        if search.refused:
            refused.update(dict.fromkeys(search.refused))
        elif not files:
            problems.add(_nothing_found(pattern, [each for each in matches if each.exists()]))
        found.update(files)
    for line in refused:
        problems.add(line)
    files = _each_once(found)
    for path in files:
        why = _why_unusable(path)
        if why:
            problems.add(f"{path}: {why}")
    problems.raise_if_any()
    return files


def hash_files(files: Sequence[Path], sha256: Callable[[Path], str]) -> dict[str, str]:
    """sha256 by path, in the order of `files`. Raises CorpusError with those that cannot be read,
    or went away since they were found."""
    hashes: dict[str, str] = {}
    problems = Problems("local corpus: the files cannot be read", _REMEDY)
    for path in files:
        try:
            hashes[str(path)] = sha256(path)
        except OSError as error:
            problems.add(f"{path}: {error.strerror or error}")
    problems.raise_if_any()
    return hashes


def content_sha256(file_hashes: Mapping[str, str]) -> str:
    """One hash of all files in their order, by kind and content, not by name."""
    lines = [f"{suffix_of(Path(name))} {value}\n" for name, value in file_hashes.items()]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def check_pin(key: str, pinned: str | None, file_hashes: Mapping[str, str]) -> None:
    """Raise when the files of corpus `key` are not those that its `content_sha256` pins."""
    found = content_sha256(file_hashes)
    if pinned in (None, found):
        return
    raise CorpusError(
        f"corpora.{key}: the files are not those that were pinned",
        problems=[
            f"content_sha256 of the configuration: {pinned}",
            f"of the {len(file_hashes)} files now:  {found}",
            *(f"{name}: sha256 {value}" for name, value in list(file_hashes.items())[:20]),
        ],
        remedy="A file was changed, added, removed, or renamed to another place in the order. Bring"
        " back what was pinned, or pin what is there now: it is another corpus.",
    )


def check_unchanged(files: Sequence[Path], file_hashes: Mapping[str, str]) -> None:
    """Raise when `files` are not what `file_hashes` pinned: by order and content, not by name."""
    names, pinned = list(file_hashes), list(file_hashes.values())
    found = list(hash_files(files, file_sha256).values())
    if found == pinned:
        return
    problems = [
        f"{path}: sha256 {now[:16]} now, {then[:16]} when the run was planned ({name})"
        for path, now, name, then in zip(files, found, names, pinned, strict=False)
        if now != then
    ]
    if len(found) != len(pinned):
        problems.append(f"{len(found)} files now, {len(pinned)} when the run was planned")
    raise CorpusError(
        "local corpus: the files changed after they were pinned",
        problems=problems,
        remedy="The artifact would not hold what its fingerprint says. Start the run again.",
    )


def _below(folder: Path, search: FolderSearch) -> Iterator[Path]:
    """Files of known kinds, at any depth; links are followed."""
    for _, entries in search.walk(folder):
        for path in entries:
            if suffix_of(path) is None:
                continue
            if search.is_file(path):
                yield path
            elif search.is_nothing(path):
                search.refuse(path, "a link to nothing")
            else:
                search.refuse(path, "not a regular file")


def _each_once(found: Iterable[Path]) -> list[Path]:
    """One path of every file, sorted."""
    paths: dict[Path, list[Path]] = {}
    for path in found:
        paths.setdefault(path.resolve(), []).append(path)
    return sorted(min(same, key=_directness) for same in paths.values())


def _directness(path: Path) -> tuple[int, int, Path]:
    whole = path.absolute()
    num_links = sum(place.is_symlink() for place in (whole, *whole.parents))
    return num_links, len(path.parts), path


def _why_unusable(path: Path) -> str | None:
    if suffix_of(path) is None:
        return f"unknown kind '{path.suffix or path.name}'; known: {', '.join(SUFFIXES)}"
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        return error.strerror or str(error)
    # A file of no bytes is one of no documents, where it can be told from half a download.
    if size == 0 and path.suffix.lower() in (*COMPRESSIONS, ".parquet"):
        return "the file is empty (0 bytes), which no file of this kind is"
    return None


def _nothing_found(pattern: str, matches: Sequence[Path]) -> str:
    if any(match.is_dir() for match in matches):
        return f"{pattern}: no file of a known kind below this folder; known: {', '.join(SUFFIXES)}"
    if matches:
        return f"{pattern}: not a regular file"
    if expanded(pattern).is_symlink():
        return f"{pattern}: a link to nothing"
    if glob.has_magic(pattern):
        return f"{pattern}: no file matches"
    folder = expanded(pattern).parent
    if not folder.is_dir():
        return f"{pattern}: no such file, and no folder {folder}"
    search = FolderSearch()
    entries = search.matching(f"{folder}/*")
    siblings = [entry.name for entry in entries if suffix_of(entry) or search.is_folder(entry)]
    return f"{pattern}: no such file.{did_you_mean(Path(pattern).name, siblings)}"

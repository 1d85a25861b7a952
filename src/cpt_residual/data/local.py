"""The user's own files: JSON lines (one document a line) and plain text (one document a file)."""

from __future__ import annotations

import codecs
import glob
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from cpt_residual.core.hashing import file_sha256
from cpt_residual.data.documents import not_utf8, parse_text
from cpt_residual.data.problems import BadDocumentError, Problems
from cpt_residual.errors import CorpusError, did_you_mean

__all__ = ["SUFFIXES", "check_unchanged", "read_local", "resolve_files"]

SUFFIXES = (".jsonl", ".txt")

_REMEDY = "Nothing was read. Mend the files, or name others in the corpus's `files`."


def resolve_files(patterns: Sequence[str]) -> list[Path]:
    """The files that `patterns` name (paths or globs with `**`): sorted, each once, none empty."""
    problems = Problems("local corpus: the files cannot be read", _REMEDY)
    found: set[Path] = set()
    for pattern in patterns:
        expanded = str(Path(pattern).expanduser())
        # Path.glob does not take absolute patterns.
        matches = [Path(match) for match in glob.glob(expanded, recursive=True)]  # noqa: PTH207
        files = [match for match in matches if match.is_file()]
        if not files:
            problems.add(_nothing_found(pattern, matches))
        found.update(files)
    for path in sorted(found):
        if path.suffix not in SUFFIXES:
            problems.add(f"{path}: unknown kind '{path.suffix}'; known: {', '.join(SUFFIXES)}")
        elif path.stat().st_size == 0:
            problems.add(f"{path}: the file is empty (0 bytes)")
    problems.raise_if_any()
    return sorted(found)


def check_unchanged(files: Sequence[Path], file_hashes: Mapping[str, str]) -> None:
    """Raise when `files` are not what `file_hashes` pinned: by order and content, not by name."""
    names, pinned = list(file_hashes), list(file_hashes.values())
    found = [file_sha256(path) for path in files]
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


def read_local(files: Sequence[Path], *, text_field: str) -> Iterator[str]:
    """The documents of `files` in order, one in memory at a time.

    A byte order mark at the start of a file belongs to its encoding and not to its text. Once
    something is wrong no further document is yielded; reading goes on to collect the problems,
    then raises one `CorpusError`.
    """
    problems = Problems(
        "local corpus: some documents cannot be used",
        "Nothing is skipped or mended silently: correct these places and run again.",
    )
    for path in files:
        jsonl = path.suffix == ".jsonl"
        read = _read_lines(path, text_field, problems) if jsonl else _read_whole(path, problems)
        for document in read:
            if not problems:
                yield document
    problems.raise_if_any()


def _read_lines(path: Path, text_field: str, problems: Problems) -> Iterator[str]:
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            mark = len(codecs.BOM_UTF8) if number == 1 and line.startswith(codecs.BOM_UTF8) else 0
            place = f"{path}:{number}"
            try:
                yield parse_text(line[mark:], place, text_field=text_field, offset=offset + mark)
            except BadDocumentError as problem:
                what = str(problem).removeprefix(place).removeprefix(": ")
                problems.add_line(str(path), number, what)
            offset += len(line)


def _read_whole(path: Path, problems: Problems) -> Iterator[str]:
    content = path.read_bytes()
    try:
        text = content.removeprefix(codecs.BOM_UTF8).decode("utf-8")
    except UnicodeDecodeError as error:
        mark = len(content) - len(content.removeprefix(codecs.BOM_UTF8))
        line = content.count(b"\n", 0, mark + error.start) + 1
        problems.add(not_utf8(f"{path}:{line}", error, offset=mark))
        return
    if text.strip():
        yield text
    else:
        problems.add(f"{path}: the file holds only white space")


def _nothing_found(pattern: str, matches: Sequence[Path]) -> str:
    if matches:
        inside = ", ".join(f"'{pattern}/*{suffix}'" for suffix in SUFFIXES)
        return f"{pattern}: is a folder; name its files, for example {inside}"
    if glob.has_magic(pattern):
        return f"{pattern}: no file matches"
    folder = Path(pattern).expanduser().parent
    if not folder.is_dir():
        return f"{pattern}: no such file, and no folder {folder}"
    siblings = [entry.name for entry in folder.iterdir() if entry.suffix in SUFFIXES]
    return f"{pattern}: no such file.{did_you_mean(Path(pattern).name, siblings)}"

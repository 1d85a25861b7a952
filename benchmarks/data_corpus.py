"""Real text from what is installed: the interpreter's library and site-packages, as JSON lines.

    python benchmarks/data_corpus.py --out FOLDER [--megabytes N]

Documents are the .py, .pyi, .md, .rst and .txt files in UTF-8 (`pydoc_data.topics`, the language
reference, among them), each once, in the order of their sha256: the same on one machine, and every
beginning is a fair sample. Up to N megabytes of text (all of it without N); when there is less,
all is passed over again with a first line that says which copy it is. FOLDER gets several files,
for programs that share work by files, and facts.json with counts and the sha256.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sysconfig
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

SUFFIXES = (".py", ".pyi", ".md", ".rst", ".txt")
MAX_FILE_BYTES = 1_000_000  # larger ones are tables rather than text
MEGABYTE = 1_000_000
_LEFT_OUT = {"__pycache__", "site-packages", "node_modules"}


@dataclass(frozen=True)
class Facts:
    """What a corpus is. `num_bytes`: of the documents in UTF-8. `unique_bytes`: of one pass over
    everything that is installed. `sha256`: over the lines in order. `wanted_bytes`, `num_files`:
    what was asked for (None: all that is installed, once)."""

    num_documents: int
    num_bytes: int
    passes: int
    unique_documents: int
    unique_bytes: int
    sha256: str
    wanted_bytes: int | None
    num_files: int


@dataclass(frozen=True)
class Corpus:
    """A folder of JSON lines files."""

    folder: Path
    facts: Facts

    @property
    def files(self) -> list[Path]:
        """In the order of the documents."""
        return sorted(self.folder.glob("*.jsonl"))


def make_corpus(folder: Path, *, num_bytes: int | None, num_files: int = 8) -> Corpus:
    """The corpus in `folder`; one that is there already, of the same request, is used again."""
    known = folder / "facts.json"
    if known.is_file():
        found: dict[str, Any] = json.loads(known.read_text())
        if (found.get("wanted_bytes"), found.get("num_files")) == (num_bytes, num_files):
            return Corpus(folder, Facts(**found))
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    documents = installed_documents()
    unique_bytes = sum(document.size for document in documents)
    wanted = unique_bytes if num_bytes is None else num_bytes
    digest = hashlib.sha256()
    total = count = passes = 0
    with ExitStack() as stack:
        files = [
            stack.enter_context((folder / f"{place:03}.jsonl").open("wb"))
            for place in range(num_files)
        ]
        for number, text in _texts(documents):
            line = json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n"
            files[min(total * num_files // wanted, num_files - 1)].write(line)
            digest.update(line)
            total, count, passes = total + len(text.encode()), count + 1, number
            if total >= wanted:
                break
    facts = Facts(
        num_documents=count,
        num_bytes=total,
        passes=passes,
        unique_documents=len(documents),
        unique_bytes=unique_bytes,
        sha256=digest.hexdigest(),
        wanted_bytes=num_bytes,
        num_files=num_files,
    )
    known.write_text(json.dumps(asdict(facts), indent=1) + "\n")
    return Corpus(folder, facts)


@dataclass(frozen=True, order=True)
class _Document:
    sha256: str
    path: Path
    size: int


def installed_documents() -> list[_Document]:
    """Every file that is a document, one of each content, by sha256."""
    found: dict[str, _Document] = {}
    for path in _files():
        content = path.read_bytes()
        if not content.strip() or not _is_utf8(content):
            continue
        sha256 = hashlib.sha256(content).hexdigest()
        found.setdefault(sha256, _Document(sha256, path, len(content)))
    return sorted(found.values())


def _files() -> Iterator[Path]:
    roots = {sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")}
    for root in sorted(roots):
        for folder, folders, names in os.walk(root):
            folders[:] = sorted(name for name in folders if name not in _LEFT_OUT)
            for name in sorted(names):
                path = Path(folder, name)
                if path.suffix in SUFFIXES and path.stat().st_size <= MAX_FILE_BYTES:
                    yield path


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def _texts(documents: list[_Document]) -> Iterator[tuple[int, str]]:
    """(pass counted from 1, text) without end."""
    number = 0
    while True:
        number += 1
        for document in documents:
            text = document.path.read_bytes().decode()
            yield number, text if number == 1 else f"copy {number}\n{text}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="a folder; used again if it is of the same size"
    )
    parser.add_argument("--megabytes", type=int, help="how much text (all that is installed, once)")
    arguments = parser.parse_args()
    wanted = arguments.megabytes and arguments.megabytes * MEGABYTE
    corpus = make_corpus(arguments.out, num_bytes=wanted)
    print(f"{corpus.folder}: {json.dumps(asdict(corpus.facts))}")


if __name__ == "__main__":
    main()

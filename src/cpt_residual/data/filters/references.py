"""Evaluation prompts to search a corpus for: `references.jsonl`, `{"task": str, "text": str}`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from pydantic import ValidationError

from cpt_residual.base_model import Frozen
from cpt_residual.errors import CorpusError

REFERENCES_FILE = "references.jsonl"


class Reference(Frozen):
    """One question of one task of the evaluation."""

    task: str
    text: str


References = Iterable[Reference]
"""Every question of every task; read once."""


def write_references(path: Path, references: References) -> dict[str, int]:
    """Write one line per question and return how many each task has, in order of appearance."""
    counts: dict[str, int] = {}
    with path.open("w", encoding="utf-8") as file:
        for reference in references:
            line = json.dumps(reference.model_dump(), ensure_ascii=False, sort_keys=True)
            file.write(line + "\n")
            counts[reference.task] = counts.get(reference.task, 0) + 1
    return counts


def read_references(path: Path) -> Iterator[Reference]:
    """The questions of `path` in order, one in memory at a time."""
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield Reference.model_validate_json(line)
            except ValidationError as error:
                raise CorpusError(
                    f"{path}:{number} is no question of an evaluation",
                    problems=[f"{each['loc']}: {each['msg']}" for each in error.errors()],
                    remedy="The contamination check has nothing to go by: build the references "
                    "again.",
                ) from error

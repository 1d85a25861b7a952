"""Documents of our own lm-eval tasks: checked JSON lines, as the tables that lm-eval expects."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from cpt_residual.errors import EvaluationError
from cpt_residual.evaluation.lazy_import import lazy_import


def read_documents(file: str, *, field: str) -> Iterator[Mapping[str, object]]:
    """Every line's JSON object; each has a text in `field`. Raises EvaluationError."""
    with Path(file).open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                row: object = json.loads(line)
            except ValueError as error:
                raise _bad_line(file, number, f"not JSON ({error})") from error
            if not isinstance(row, dict):
                raise _bad_line(file, number, "not a JSON object")
            found = cast("Mapping[str, object]", row)
            value = found.get(field)
            if not isinstance(value, str) or not value:
                raise _bad_line(file, number, f"field '{field}' is {value!r}, not a text")
            yield found


def as_split(rows: list[dict[str, object]], file: str) -> Any:
    """What `custom_dataset` of a task file returns. Raises EvaluationError when there is no row."""
    if not rows:
        raise EvaluationError(
            "A file of evaluation documents is empty.",
            problems=[Path(file).name],
            remedy="Without documents there is no score. Ask for at least one document.",
        )
    return {"test": lazy_import("datasets").Dataset.from_list(rows)}


def _bad_line(file: str, number: int, problem: str) -> EvaluationError:
    return EvaluationError(
        "A file of evaluation documents cannot be read.",
        problems=[f"{Path(file).name} line {number}: {problem}"],
        remedy="Every line must be a JSON object with that field.",
    )

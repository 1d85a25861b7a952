from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cpt_residual.evaluation.documents import as_split, read_documents
from cpt_residual.evaluation.responses import Response


def load_letters(*, file: str, **_added: object) -> Any:
    return as_split([dict(row) for row in read_documents(file, field="prompt")], file)


def score(doc: Mapping[str, str], results: Sequence[Response]) -> dict[str, float]:
    return {"repeated": float(results[0] == doc["prompt"])}

"""References from one stage to documents that another stage publishes."""

from __future__ import annotations

from dataclasses import dataclass

from cpt_residual.core.stage import Stage

__all__ = ["CorpusInput"]


@dataclass(frozen=True)
class CorpusInput:
    """Document files inside the artifact of `stage`.

    documents: the training documents, e.g. `documents.jsonl` or `general.jsonl`;
    heldout: documents that are never trained on, or None when the corpus holds none out.
    """

    stage: Stage
    documents: str
    heldout: str | None = None

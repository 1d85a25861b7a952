"""Likelihood of held-out documents. lm-eval calls these functions by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from cpt_residual.evaluation.documents import as_split, read_documents
from cpt_residual.evaluation.responses import ScoredText


def load_texts(*, file: str, max_documents: int, **_added: object) -> Any:
    """The first `max_documents` held-out documents."""
    documents = islice(read_documents(file, field="text"), max_documents)
    return as_split([{"text": row["text"]} for row in documents], file)


def score_text(
    doc: Mapping[str, str], results: Sequence[ScoredText]
) -> dict[str, tuple[float, int]]:
    """Pairs (log likelihood in nats, what it is spread over), to be summed over documents."""
    del doc
    scored = results[0]
    return {
        "bits_per_byte": (float(scored), scored.num_bytes),
        "token_perplexity": (float(scored), scored.num_tokens),
        "word_perplexity": (float(scored), scored.num_words),
    }

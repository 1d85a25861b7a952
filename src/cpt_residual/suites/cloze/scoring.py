"""Scores of the choices of a cloze question. lm-eval calls these functions by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cpt_residual.evaluation.documents import as_split, read_documents

_FIELDS = ("context", "choices", "answer")


def load_questions(*, file: str, **_added: object) -> Any:
    """The questions that the stage `probe` made."""
    questions = read_documents(file, field="context")
    return as_split([{name: row[name] for name in _FIELDS} for row in questions], file)


def score_choices(
    doc: Mapping[str, Any], results: Sequence[tuple[float, bool]]
) -> dict[str, float | tuple[float, int]]:
    """`results`: log likelihood in nats of every choice after the context, and whether the model
    would have written it.

    accuracy: the true span is likelier than every other choice (of equals the first
    in their seeded order counts);
    accuracy_per_byte: the same with likelihoods per byte; recalled: greedy decoding writes the true
    span; target_bits_per_byte: what the true span costs; chance: accuracy of a guess.
    """
    answer, sizes = int(doc["answer"]), [len(choice.encode()) for choice in doc["choices"]]
    likelihoods = [likelihood for likelihood, _ in results]
    per_byte = [each / size for each, size in zip(likelihoods, sizes, strict=True)]
    return {
        "accuracy": float(_best(likelihoods) == answer),
        "accuracy_per_byte": float(_best(per_byte) == answer),
        "recalled": float(results[answer][1]),
        "target_bits_per_byte": (likelihoods[answer], sizes[answer]),
        "chance": 1 / len(sizes),
    }


def _best(values: Sequence[float]) -> int:
    return max(range(len(values)), key=lambda i: values[i])

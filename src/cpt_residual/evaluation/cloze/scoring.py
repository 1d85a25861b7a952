"""What the cloze task does with a question and the likelihoods of its choices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cpt_residual.data.cloze.questions import Question
from cpt_residual.errors import EvaluationError
from cpt_residual.evaluation.lazy_import import lazy_import

METRICS = ("accuracy", "accuracy_per_byte", "recalled", "target_bits_per_byte", "chance")

_FIELDS = {"context", "choices", "answer"}


def load_questions(*, file: str, **_added: object) -> Any:
    """The questions of a probe, as lm-eval's documents."""
    with Path(file).open(encoding="utf-8") as lines:
        questions = [Question.model_validate_json(line) for line in lines]
    if not questions:
        raise EvaluationError(
            "A file of cloze questions is empty.",
            problems=[Path(file).name],
            remedy="Without questions there is no score. Build the probe again.",
        )
    rows = [question.model_dump(include=_FIELDS) for question in questions]
    return {"test": lazy_import("datasets").Dataset.from_list(rows)}


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

"""Logits that are no numbers end an evaluation: argmax and the likelihoods of NaN are scores too,
those of a blind guess.

-Inf for single tokens is a mask and allowed. NaN or +Inf anywhere, or -Inf for every token, leaves
no distribution. Shapes: B rows of a batch, T tokens, V tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from transformers import LogitsProcessor

from cpt_residual.errors import EvaluationError
from cpt_residual.launch.visible import visible

_SHOWN = 60


class NotFiniteRowError(Exception):
    """A row of a batch in generation whose next token has no distribution."""

    def __init__(self, row: int, ids: list[int]) -> None:
        super().__init__(row)
        self.row, self.ids = row, ids


class NotFiniteError(Exception):
    """A request whose logits are not finite from `position` on (of `num_tokens`)."""

    def __init__(
        self, *, task: str, document: str, position: int, num_tokens: int, text: str
    ) -> None:
        super().__init__(task)
        self.task, self.document, self.text = task, document, text
        self.position, self.num_tokens = position, num_tokens

    def told(self, variant: str, suite: str, model: Path) -> EvaluationError:
        """What the user reads."""
        start = visible(self.text[:_SHOWN])
        of = f"{self.position + 1} of {self.num_tokens}"
        return EvaluationError(
            f"variant {variant}: the logits of the model are not finite",
            problems=[
                f"suite {suite}, task {self.task}, {self.document}: NaN or Inf from token {of} on",
                f"the text begins: {start}{'...' if len(self.text) > _SHOWN else ''}",
                f"model: {model}",
            ],
            remedy="Nothing was scored: the scores of such a model are those of a blind guess. "
            "Look for NaN or Inf in its weights and for a training that diverged; where bf16 "
            "overflows, evaluate in fp32.",
        )


def bad_rows(logits_V: torch.Tensor) -> torch.Tensor:
    """True where the last dimension holds no distribution. One pass, no copy."""
    return ~torch.isfinite(logits_V.amax(dim=-1))


def first_bad(logits_TV: torch.Tensor) -> int | None:
    """The first position without a distribution."""
    bad = torch.nonzero(bad_rows(logits_TV))
    return int(bad[0, 0]) if len(bad) else None


def named_request(asked: Sequence[object], number: int | None) -> tuple[str, str]:
    """(task, document) of one of lm-eval's requests; None: it is not known which, the task is."""
    request = asked[number or 0] if asked else None
    task = getattr(request, "task_name", None) or "unknown"
    document = getattr(request, "doc_id", None)
    known = number is not None and document is not None
    return str(task), f"document {document}" if known else "a document"


class FiniteScores(LogitsProcessor):
    """Raises NotFiniteRowError at the first step of a generation without a distribution.

    `num_given`: length of each row's prompt; what is before it in the batch is padding."""

    def __init__(self, num_given: Sequence[int]) -> None:
        self._num_given = num_given
        self._width = max(num_given)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        bad_B = bad_rows(scores)
        if bool(bad_B.any()):
            row = int(torch.nonzero(bad_B)[0, 0])
            ids_T = input_ids[row, self._width - self._num_given[row] :]
            raise NotFiniteRowError(row, cast("list[int]", ids_T.tolist()))
        return scores

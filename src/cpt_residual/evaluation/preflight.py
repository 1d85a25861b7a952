"""What an evaluation can refuse before anything is trained: tasks, chat template, token maps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cpt_residual.config.schema import HarnessTask
from cpt_residual.evaluation.prefetch import fetch_task_data
from cpt_residual.evaluation.template import ChatSide


def require_tasks(tasks: Sequence[HarnessTask]) -> None:
    """EvaluationError for a stock task that lm-eval does not know, or whose data or scorer's data
    cannot be loaded. Cost: loads the data of all tasks as the evaluation does, which downloads
    what is not cached where there is a network."""
    for _ in fetch_task_data(tasks):
        pass


def require_chat(template_dir: Path, base_dir: Path | None, *, asks: bool) -> None:
    """The template's owner closes its turns with known tokens and, where a suite asks through the
    template (`asks`), a prompt is rendered. Raises CompatibilityError or EvaluationError."""
    ChatSide.of(template_dir, asks=asks).stop_token_ids(base_dir)


def require_tokens(template_dir: Path, model_dir: Path) -> None:
    """CompatibilityError when a variant reads other tokens than the template's owner."""
    if template_dir != model_dir:
        ChatSide.of(template_dir, asks=False).check_tokenizer_of(model_dir)

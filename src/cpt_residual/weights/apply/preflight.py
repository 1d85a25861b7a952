"""What compute and apply can refuse before any training: from headers, configs and tokenizers."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from cpt_residual.config.merging import MergeRecipe, VocabPolicy
from cpt_residual.modeling.chat_check import require_chat_side
from cpt_residual.weights.io.checkpoint import Checkpoint, open_checkpoint
from cpt_residual.weights.io.reader import require_equal_aliases
from cpt_residual.weights.maths.strengths import require_known_scales
from cpt_residual.weights.merge.inputs import Addition
from cpt_residual.weights.residual.source import PairDelta
from cpt_residual.weights.tokens import chat_contract

_THREADS = 2


@dataclass(frozen=True)
class Merge:
    """An addition that is planned. target: a model with the layout that the target will have;
    base, instruct: those of the residual; target_base: for recipes that need it."""

    target: Path
    base: Path
    instruct: Path
    target_base: Path | None
    recipe: MergeRecipe
    vocab_policy: VocabPolicy


def require_pair(base: Path, instruct: Path, vocab_policy: VocabPolicy) -> None:
    """Raises as `residual.compute` would: CompatibilityError for models or tokens that do not
    belong together, and for tied tensors stored with two values (the only weights that are read).
    """
    pair = _pair(base, instruct, vocab_policy)
    for checkpoint in pair.checkpoints:
        require_equal_aliases(checkpoint, threads=_THREADS)
    if not pair.plan.identity:
        for checkpoint, tokens in zip(
            pair.checkpoints, (pair.base_tokens, pair.tokens), strict=True
        ):
            chat_contract.eos_tokens(checkpoint.path, tokens)


def require_merge(planned: Merge) -> None:
    """Raises as `merge` would before it reads weights: CompatibilityError for a target that the
    residual does not fit, for factors that name no tensor, and for a chat side that cannot be
    written or would not render or stop."""
    target_base = planned.target_base and _opened(planned.target_base, "base")
    addition = Addition(
        _opened(planned.target, "target"),
        _pair(planned.base, planned.instruct, planned.vocab_policy),
        planned.recipe,
        target_base,
    )
    addition.require_fit(threads=_THREADS)
    require_chat_side(planned.instruct, "instruct")
    require_known_scales(addition.target.unique_tensors, planned.recipe.scales, addition.rows)
    with tempfile.TemporaryDirectory(prefix="cpt-residual-") as folder:
        chat_contract.install(
            instruct_side=planned.instruct,
            base_eos=addition.source.base_eos,
            target=planned.target,
            out=Path(folder),
            plan=addition.plan,
            sides=(addition.source.tokens, addition.target_tokens),
        )


def _pair(base: Path, instruct: Path, vocab_policy: VocabPolicy) -> PairDelta:
    return PairDelta(_opened(base, "base"), _opened(instruct, "instruct"), vocab_policy)


def _opened(folder: Path, role: str) -> Checkpoint:
    return open_checkpoint(folder, role=role, links_allowed=True)

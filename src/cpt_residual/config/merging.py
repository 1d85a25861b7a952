"""Settings of residual storage and of merging beyond plain addition.

Plain addition (`MergeRecipe()`) is the paper. Every other choice names its own source; methods are
in `cpt_residual.methods`, one file each.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from cpt_residual.base_model import Frozen
from cpt_residual.methods.add import Add
from cpt_residual.methods.low_rank import LowRank
from cpt_residual.methods.registry import AnyMethod

VocabPolicy = Literal["equal", "common_tokens"]


class MergeRecipe(Frozen):
    """What changes the merged bytes, beside the models and alpha.

    cpt_strength: RE-Adapt's lambda, in base + lambda * (target - base) + alpha * residual; anything
    but 1 needs the base.
    scales: factors on alpha by module class (attention, mlp, embeddings, head, norm), by layers
    (`layers.0-3`), or by a glob over tensor names; the last match decides.
    embedding_rows: which rows of the embedding and the head get the residual (Chat Vector, Huang
    et al. 2023, leaves them out or takes only the special tokens').
    auto_alpha: `projection` sets alpha per tensor so that the merged model has gone as far along
    the residual as instruct has; needs the base.
    vocab_policy: `equal` refuses different id-to-token maps; `common_tokens` aligns rows by token.
    new_token_rows: rows of tokens that only instruct has, under `common_tokens`.
    """

    method: Annotated[AnyMethod, Field(description="how residual and target meet")] = Add()
    cpt_strength: Annotated[float, Field(description="lambda on target - target base")] = 1.0
    scales: Annotated[
        dict[str, float],
        Field(
            description="PATTERN=FACTOR on alpha: attention, mlp, embeddings, head, norm, "
            "layers.0-3, or a glob over tensor names; repeatable, the last match decides"
        ),
    ] = {}  # noqa: RUF012 - pydantic copies it
    embedding_rows: Annotated[
        Literal["all", "special_tokens", "none"],
        Field(description="embedding and head rows that get the residual"),
    ] = "all"
    auto_alpha: Annotated[
        Literal["off", "projection"],
        Field(description="alpha per tensor, from measured norms and cosines"),
    ] = "off"
    vocab_policy: Annotated[
        VocabPolicy,
        Field(description="equal refuses other tokens; common_tokens aligns rows by token"),
    ] = "equal"
    new_token_rows: Annotated[
        Literal["instruct_row", "base_mean"],
        Field(description="rows of tokens that only instruct has"),
    ] = "instruct_row"  # noqa: S105 - no password

    @property
    def beyond_addition(self) -> dict[str, str]:
        """The choices that make each element more than target + factor * residual, by name."""
        choices = {} if self.method == Add() else {"method": self.method.name}
        if self.cpt_strength != 1.0:
            choices["cpt_strength"] = str(self.cpt_strength)
        if self.auto_alpha != "off":
            choices["auto_alpha"] = self.auto_alpha
        return choices

    @property
    def needs_base(self) -> bool:
        """Whether the arithmetic needs theta_base beside target and residual."""
        return self.method.needs_base or not self.beyond_addition.keys() <= {"method"}

    @property
    def num_reads(self) -> int:
        """How often a tensor is read: methods and automatic alphas measure it before the merge."""
        return self.method.num_reads + (self.auto_alpha != "off")


class Storage(Frozen):
    """How a residual is kept. fp32 reconstructs instruct bit for bit; the others state their
    measured error. `low_rank` applies to matrices; vectors stay in `dtype`."""

    dtype: Literal["fp32", "bf16"] = "fp32"
    low_rank: LowRank | None = None


PLAIN_ADDITION = MergeRecipe()
EXACT_STORAGE = Storage()

"""Settings of residual storage and of merging beyond plain addition.

Plain addition (`MergeRecipe()`) is the paper. Every other choice names its own source.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

VocabPolicy = Literal["equal", "common_tokens"]
Share = Annotated[float, Field(gt=0.0, le=1.0)]


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Add(_Value):
    """target + alpha * residual (Jindal et al. 2024, eq. 2)."""

    kind: Literal["add"] = "add"


class Ties(_Value):
    """TIES-Merging (Yadav et al. 2023) of the CPT delta and the residual: keep the `density` of
    largest magnitude of each, per tensor (the paper: of the whole vector), elect a sign per
    element, average what agrees with it."""

    kind: Literal["ties"] = "ties"
    density: Share = 0.2


class Dare(_Value):
    """DARE (Yu et al. 2024): drop each element of the residual with probability `drop_rate`, scale
    the rest by 1 / (1 - drop_rate). The choice depends on seed, tensor and element alone."""

    kind: Literal["dare"] = "dare"
    drop_rate: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.5
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0


class LowRank(_Value):
    """The best approximation of low rank of each matrix of the residual (RE-Adapt, Fleshman and Van
    Durme 2024): by `rank`, or the least rank that explains a share of its squared norm."""

    kind: Literal["low_rank"] = "low_rank"
    rank: Annotated[int, Field(gt=0)] | None = None
    explained_variance: Share | None = None

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.rank is None) == (self.explained_variance is None):
            raise ValueError("give either rank or explained_variance")
        return self


Method = Annotated[Add | Ties | Dare | LowRank, Field(discriminator="kind")]


class MergeRecipe(_Value):
    """What changes the merged bytes, beside the models and alpha.

    cpt_strength: lambda on the CPT delta (RE-Adapt): base + lambda * (target - base) + alpha *
    residual; anything but 1 needs the base.
    scales: factors on alpha by module class (attention, mlp, embeddings, head, norm), by layers
    (`layers.0-3`), or by a glob over tensor names; the last match decides.
    embedding_rows: which rows of the embedding and the head get the residual (Chat Vector, Huang
    et al. 2023, leaves them out or takes only the special tokens').
    auto_alpha: `projection` sets alpha per tensor so that the merged model has gone as far along
    the residual as instruct has; needs the base.
    vocab_policy: `equal` refuses different id-to-token maps; `common_tokens` aligns rows by token.
    new_token_rows: rows of tokens that only instruct has, under `common_tokens`.
    """

    method: Method = Add()
    cpt_strength: float = 1.0
    scales: dict[str, float] = {}
    embedding_rows: Literal["all", "special_tokens", "none"] = "all"
    auto_alpha: Literal["off", "projection"] = "off"
    vocab_policy: VocabPolicy = "equal"
    new_token_rows: Literal["instruct_row", "base_mean"] = "instruct_row"  # noqa: S105

    @property
    def needs_base(self) -> bool:
        """Whether the arithmetic needs theta_base beside target and residual."""
        return self.cpt_strength != 1.0 or self.method.kind == "ties" or self.auto_alpha != "off"

    @property
    def measures_first(self) -> bool:
        """Whether whole tensors are measured before they are merged: then they are read again."""
        return self.method.kind in ("ties", "low_rank") or self.auto_alpha != "off"


class Storage(_Value):
    """How a residual is kept. fp32 reconstructs instruct bit for bit; the others state their
    measured error. `low_rank` applies to matrices; vectors stay in `dtype`."""

    dtype: Literal["fp32", "bf16"] = "fp32"
    low_rank: LowRank | None = None


PLAIN_ADDITION = MergeRecipe()
EXACT_STORAGE = Storage()

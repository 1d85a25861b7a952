"""What a report is made of: typed values, read by the report stage, that every part here takes.

Scores and differences are shares (0..1) or plain units as the evaluation wrote them; only the
tables turn shares into percent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

Kind = Literal[
    "base",
    "instruct",
    "base_cpt",
    "instruct_cpt",
    "merged",
    "alpha",
    "replay",
    "sft",
    "donor",
    "control",
]
"""Part a variant plays. alpha: the merge at another alpha; replay: CPT that mixes in instruction
data; sft: instruction tuning after CPT; donor: another residual; control: the rest."""


@dataclass(frozen=True)
class ResultRow:
    """One score. `stderr` is None where the scorer gives none; `n` counts what was averaged."""

    variant: str
    task: str
    metric: str
    value: float
    stderr: float | None
    n: int


@dataclass(frozen=True)
class RouteStep:
    """One piece of work on the way from the released pair to a variant."""

    name: str
    flops: float
    tokens: int


@dataclass(frozen=True)
class Variant:
    """One evaluated set of weights, its part, and what it costs beyond the released pair.

    `route` is None where a cost is not known. `needs_instruction_data`: some step of the route
    trains on dialogues that the released pair does not come with.
    """

    name: str
    kind: Kind
    alpha: float | None = None
    route: tuple[RouteStep, ...] | None = None
    needs_instruction_data: bool = False

    @property
    def flops(self) -> float | None:
        return None if self.route is None else sum(step.flops for step in self.route)


@dataclass(frozen=True)
class TracePoint:
    """Training loss after `tokens` training tokens."""

    tokens: int
    loss: float


@dataclass(frozen=True)
class Training:
    """One training of the experiment. `bf16_lost_share`: share of updated weights that a bf16
    save would leave unchanged."""

    model: str
    stage: str
    tokens: int
    steps: int
    flops: float
    num_parameters: int
    final_loss: float
    bf16_lost_share: float | None
    trace: tuple[TracePoint, ...]


@dataclass(frozen=True)
class Difference:
    """Paired difference first - second of one measure over the same `n` prompts, with a 95 %
    confidence interval over prompts and an exact or resampled two-sided p value."""

    first: str
    second: str
    measure: str
    value: float
    low: float
    high: float
    p_value: float
    n: int


@dataclass(frozen=True)
class TensorGeometry:
    """Geometry of one tensor: `values` by name, e.g. `drift base_cpt`."""

    tensor: str
    layer: int | None
    module: str
    values: Mapping[str, float]


@dataclass(frozen=True)
class Geometry:
    """Whole-model numbers by name, and the same per tensor. `drift` maps a model to
    norm(theta - theta_start) / norm(theta_start)."""

    drift: Mapping[str, float]
    cosine: Mapping[str, float]
    other: Mapping[str, float]
    tensors: tuple[TensorGeometry, ...]


@dataclass(frozen=True)
class PromptScores:
    """Per-prompt values (0 or 1) of one measure: prompt key -> variant -> value."""

    measure: str
    task: str
    metric: str
    values: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class RoleNames:
    """Variant that plays each part of the paper's comparison."""

    base: str
    instruct: str
    base_cpt: str
    instruct_cpt: str | None
    merged: str

    @property
    def core(self) -> tuple[str, ...]:
        names = (self.base, self.instruct, self.base_cpt, self.instruct_cpt, self.merged)
        return tuple(name for name in names if name is not None)


class PairedTest(Protocol):
    """Statistics of two score lists over the same prompts: (difference, low, high, p value)."""

    def __call__(
        self, first: Sequence[float], second: Sequence[float], /
    ) -> tuple[float, float, float, float]: ...


@dataclass(frozen=True)
class ReportFacts:
    """Everything a report says. `provenance`: (what, value) lines on models, data and versions."""

    experiment: str
    question: str
    seed: int
    roles: RoleNames
    variants: tuple[Variant, ...]
    rows: tuple[ResultRow, ...]
    differences: tuple[Difference, ...] = ()
    prompts: tuple[PromptScores, ...] = ()
    trainings: tuple[Training, ...] = ()
    geometry: Geometry | None = None
    new_corpus: str | None = None
    provenance: tuple[tuple[str, str], ...] = ()
    lineage: str = ""
    notes: tuple[str, ...] = field(default=())

    def variant(self, name: str) -> Variant | None:
        return next((variant for variant in self.variants if variant.name == name), None)

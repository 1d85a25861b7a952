"""Typed input of a report, read by the report stage.

Scores and differences are shares (0..1) or plain units as the evaluation wrote them; only the
tables turn shares into percent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from cpt_residual.config.schema import Goals
from cpt_residual.evaluation.results import ResultRow
from cpt_residual.weights.geometry import CellRow

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
    """One training of the experiment. `lost_share`: share of moved weights that rounding to the
    stored dtype put back where they were; None where nothing is rounded (stored in fp32)."""

    model: str
    stage: str
    tokens: int
    steps: int
    flops: float
    num_parameters: int
    final_loss: float
    lost_share: float | None
    trace: tuple[TracePoint, ...]


_ALPHA = 0.05
"""Level of the tests that a claim of better or worse has to pass besides its interval."""


@dataclass(frozen=True)
class Difference:
    """Paired difference first - second of one measure over the same `n` prompts, with a 95 %
    confidence interval over prompts and the exact two-sided p value (sign test)."""

    first: str
    second: str
    measure: str
    value: float
    low: float
    high: float
    p_value: float
    n: int

    @property
    def above(self) -> bool:
        """The first is shown to be higher: interval and exact test agree."""
        return self.low > 0 and self.p_value < _ALPHA

    @property
    def below(self) -> bool:
        """The first is shown to be lower."""
        return self.high < 0 and self.p_value < _ALPHA


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
    norm(theta - theta_start) / norm(theta_start). `cells`: per layer and part, for heat maps."""

    drift: Mapping[str, float]
    cosine: Mapping[str, float]
    other: Mapping[str, float]
    tensors: tuple[TensorGeometry, ...]
    cells: tuple[CellRow, ...] = ()


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


@dataclass(frozen=True)
class ReportFacts:
    """Everything a report says. `provenance`: (what, value) lines on models, data and versions;
    `goals`: what the experiment was set to reach, if anything."""

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
    goals: Goals | None = None
    provenance: tuple[tuple[str, str], ...] = ()
    lineage: str = ""
    notes: tuple[str, ...] = field(default=())

    def variant(self, name: str) -> Variant | None:
        return next((variant for variant in self.variants if variant.name == name), None)

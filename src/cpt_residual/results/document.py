"""Everything that an experiment found, as one value: `results.json` is this value and no more."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import Field, ValidationError

from cpt_residual.base_model import Frozen
from cpt_residual.config.contrasts import ContrastFamily, Kind, StatedKind, VariantWords
from cpt_residual.config.schema import Roles
from cpt_residual.errors import ArtifactError
from cpt_residual.results.contrasts import Family
from cpt_residual.results.goals import Goal
from cpt_residual.results.table import ResultTable

RESULTS_FILE = "results.json"
SCHEMA = 2


class RouteStep(Frozen):
    """One piece of work on the way from the released pair to a variant."""

    name: str
    flops: float
    tokens: int


class Variant(Frozen):
    """One evaluated set of weights, its part, and what it costs beyond the released pair.

    `route` is None where a cost is not known. `needs_instruction_data`: some step of the route
    trains on dialogues that the released pair does not come with.
    """

    name: str
    label: str
    kind: Kind
    alpha: float | None = None
    route: tuple[RouteStep, ...] | None = None
    needs_instruction_data: bool = False

    @property
    def flops(self) -> float | None:
        return None if self.route is None else sum(step.flops for step in self.route)


class Training(Frozen):
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


class Geometry(Frozen):
    """Whole-model numbers by name. `drift` maps a model to norm(theta - theta_start) /
    norm(theta_start)."""

    drift: dict[str, float]
    cosine: dict[str, float]
    other: dict[str, float]


class Verdict(Frozen):
    """`outcome`: that of the family which answers the question, or not_measured. One headline, and
    what else must be known, one paragraph per subject."""

    outcome: str
    headline: str
    paragraphs: tuple[str, ...]

    @property
    def text(self) -> str:
        return " ".join((self.headline, *self.paragraphs))


class Results(Frozen):
    """All findings of one experiment and seed. `declared`: its families as the configuration
    states them; `provenance`: (what, value) lines on models, data and versions."""

    schema_version: int = SCHEMA
    experiment: str
    question: str
    seed: int
    roles: Roles
    variants: tuple[Variant, ...]
    table: ResultTable
    declared: dict[str, ContrastFamily] = Field(default_factory=dict[str, ContrastFamily])
    margin: float
    answered_by: str | None = None
    families: tuple[Family, ...] = ()
    verdict: Verdict | None = None
    goals: tuple[Goal, ...] = ()
    trainings: tuple[Training, ...] = ()
    geometry: Geometry | None = None
    provenance: tuple[tuple[str, str], ...] = ()
    lineage: str = ""
    notes: tuple[str, ...] = ()

    def variant(self, name: str) -> Variant | None:
        return next((variant for variant in self.variants if variant.name == name), None)

    def label(self, name: str) -> str:
        variant = self.variant(name)
        return name if variant is None else variant.label

    def family(self, name: str | None) -> Family | None:
        return next((family for family in self.families if family.name == name), None)

    @property
    def kinds(self) -> dict[str, Kind]:
        return {variant.name: variant.kind for variant in self.variants}

    @property
    def core(self) -> tuple[str, ...]:
        """The evaluated variants of the paper's comparison."""
        names = [*self.roles.model_dump().values()]
        return tuple(name for name in names if name is not None and self.variant(name))

    def write(self, folder: Path) -> None:
        """`results.json` in `folder`; the same results give the same bytes."""
        text = self.model_dump_json(indent=1) + "\n"
        (folder / RESULTS_FILE).write_text(text, encoding="utf-8", newline="\n")


def read_results(folder: Path) -> Results:
    """What `Results.write` wrote. Raises ArtifactError when the folder holds no such report."""
    remedy = "Give the report folders of finished runs (runs/<run>/report)."
    try:
        return Results.model_validate_json((folder / RESULTS_FILE).read_bytes())
    except OSError:
        problem = f"{RESULTS_FILE} is missing"
    except ValidationError as error:
        problem = f"{RESULTS_FILE} is of another version, or damaged ({error.error_count()} faults)"
        remedy += " A report of an older version is built again by the command that made it."
    raise ArtifactError(f"{folder} is not a report", problems=[problem], remedy=remedy)


def kind_of(name: str, roles: Roles, words: Mapping[str, VariantWords]) -> Kind:
    """The part that the configuration gives a variant."""
    core: dict[str | None, Kind] = {
        roles.merged: "merged",
        roles.instruct_cpt: "instruct_cpt",
        roles.base_cpt: "base_cpt",
        roles.instruct: "instruct",
        roles.base: "base",
    }
    stated: StatedKind = words[name].kind if name in words else "control"
    return core.get(name, stated)

"""Which variants an experiment compares, with what words, and how its verdict reads the outcome."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Literal

from pydantic import Field

from cpt_residual.base_model import Frozen, Line, Name, Text

CoreKind = Literal["base", "instruct", "base_cpt", "instruct_cpt", "merged"]
StatedKind = Literal["alpha", "method", "donor", "replay", "sft", "control"]
Kind = CoreKind | StatedKind
"""Part a variant plays: the core ones are `roles`. alpha: the merge at another alpha; method:
another way of adding the residual; donor: another residual; replay: CPT that mixes in instruction
data; sft: instruction tuning after CPT; control: the rest."""


class VariantWords(Frozen):
    """How a variant is shown. `label`: its name in tables and figures."""

    kind: StatedKind = "control"
    label: Line | None = None


class ContrastFamily(Frozen):
    """Tests that belong together: each chosen variant against one, on each chosen measure.

    Chosen are the named `variants` and all of the named `kinds` (`variants: all`: every evaluated
    one). `measures`: roles of measures, or single ones as `task/metric`; `all`: every headline.
    What is not evaluated is not tested.
    """

    question: Text | None = None
    variants: list[Name] | Literal["all"] = Field(default_factory=list[str])
    kinds: list[StatedKind] = Field(default_factory=list[StatedKind])
    against: Name
    measures: Annotated[list[Line], Field(min_length=1)] | Literal["all"]

    def chosen(self, kinds: Mapping[str, Kind]) -> tuple[str, ...]:
        """The variants to test, of those evaluated (name -> kind), in their order."""
        return tuple(name for name, kind in kinds.items() if self._chooses(name, kind))

    def _chooses(self, name: str, kind: Kind) -> bool:
        if name == self.against:
            return False
        return self.variants == "all" or name in self.variants or kind in self.kinds

    def names(self) -> Iterable[str]:
        """The models that are named one by one."""
        return [*([] if self.variants == "all" else self.variants), self.against]


class VerdictRule(Frozen):
    """The family that answers the experiment's question, and the difference (a share, 0.05 is five
    points) up to which a score counts as kept."""

    contrasts: Name
    margin: Annotated[float, Field(gt=0, lt=1)]

"""The procedural world of the tiny experiments, written from the seed alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

from cpt_residual.base_model import Frozen
from cpt_residual.config.corpora import World as WorldConfig
from cpt_residual.core.rates import WORLD_DOCUMENTS_PER_SECOND
from cpt_residual.core.stage import (
    ONE_CORE,
    ArtifactRef,
    Cost,
    Metrics,
    Resources,
    RunContext,
    Stage,
)
from cpt_residual.data.world.size import WorldSize

_BYTES_PER_DOCUMENT = 160


class WorldRecipe(Frozen):
    """Every size of the world, those the configuration does not name included, and the seed."""

    size: dict[str, int | float]
    seed: int


@dataclass(frozen=True)
class World:
    """Corpora, dialogues and probes about procedural people."""

    world: WorldConfig
    seed: int

    name: ClassVar[str] = "world"
    version: ClassVar[int] = 1

    @property
    def node(self) -> str:
        return "world"

    @property
    def size(self) -> WorldSize:
        """The world's size; donor dialogues are as many as the family's own."""
        return WorldSize(
            num_general_documents=self.world.num_general_documents,
            num_new_documents=self.world.num_new_documents,
            num_donor_documents=self.world.num_donor_documents,
            num_heldout_documents=self.world.num_heldout_documents,
            num_instructions=self.world.num_instructions,
            num_donor_instructions=self.world.num_instructions,
            num_prompts_per_type=self.world.num_prompts_per_type,
        )

    def recipe(self) -> WorldRecipe:
        return WorldRecipe(size=asdict(self.size), seed=self.seed)

    def inputs(self) -> Mapping[str, Stage]:
        return {}

    def cost(self) -> Cost:
        size = self.size
        num_documents = (
            size.num_general_documents
            + size.num_new_documents
            + size.num_donor_documents
            + 2 * size.num_heldout_documents
            + size.num_instructions
            + size.num_donor_instructions
            + size.num_tokenizer_documents
        )
        return Cost(
            seconds=num_documents / WORLD_DOCUMENTS_PER_SECOND,
            disk_bytes=num_documents * _BYTES_PER_DOCUMENT,
        )

    def resources(self) -> Resources:
        return ONE_CORE

    def build(self, inputs: Mapping[str, ArtifactRef], work: Path, ctx: RunContext) -> Metrics:
        del inputs
        from cpt_residual.data.world.write import write_world

        counts = write_world(work / "out", seed=self.seed, size=self.size)
        total = sum(counts.values())
        ctx.progress(total, total, "documents")
        return {f"num_{name.replace('/', '_')}": count for name, count in counts.items()}

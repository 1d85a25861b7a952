"""Fake stages for tests of graph, store and runner: quick, deterministic, no heavy library."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from pydantic import BaseModel, ConfigDict

from cpt_residual.config.corpora import World
from cpt_residual.core.stage import (
    ONE_CORE,
    ArtifactRef,
    Cost,
    Metrics,
    Resources,
    RunContext,
    Stage,
)

Sources = tuple[tuple[str, Stage], ...]
SMALL_WORLD = World(
    num_general_documents=40,
    num_new_documents=30,
    num_instructions=50,
    num_heldout_documents=5,
    num_donor_documents=10,
    num_prompts_per_type=1,
)


class TextRecipe(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    text: str


def _nothing(work: Path) -> None:
    del work


@dataclass(frozen=True)
class TextStage:
    """Publishes `data.txt` (its text and what its inputs hold) and `sub/more.txt`.

    Works through a checkpoint in its scratch directory, as the training stages do. `action` runs
    at the end of `build` with the scratch directory; it is not part of the recipe.
    """

    name: ClassVar[str] = "text"
    version: ClassVar[int] = 1

    node: str
    text: str = "hello"
    sources: Sources = ()
    action: Callable[[Path], object] = field(default=_nothing, compare=False)
    disk_bytes: int = 0

    def recipe(self) -> TextRecipe:
        return TextRecipe(text=self.text)

    def inputs(self) -> Mapping[str, Stage]:
        return dict(self.sources)

    def cost(self) -> Cost:
        return Cost(disk_bytes=self.disk_bytes)

    def resources(self) -> Resources:
        return ONE_CORE

    def describe(self) -> str:
        return f"text={self.text}"

    def build(self, inputs: Mapping[str, ArtifactRef], work: Path, ctx: RunContext) -> Metrics:
        checkpoint = work / "checkpoint"
        if not checkpoint.exists():
            half = work / "checkpoint.half"
            half.write_text(self.text)
            half.rename(checkpoint)
        read = [f"{role}={(inputs[role].path / 'data.txt').read_text()}" for role in sorted(inputs)]
        with (work / "out" / "data.txt").open("w") as stream:
            stream.write(checkpoint.read_text())
            stream.flush()
            os.fsync(stream.fileno())  # an instant at which half of the file is written
            stream.write("|" + ",".join(read))
        (work / "out" / "sub").mkdir()
        (work / "out" / "sub" / "more.txt").write_text(self.text * 3)
        self.action(work)
        ctx.progress(1, 1, "texts")
        return {"length": len(self.text), "loss": 0.5, "name": self.text, "done": True}


@dataclass(frozen=True)
class ActionStage:
    """Publishes whatever `action` writes into `work/out`; says nothing of itself."""

    name: ClassVar[str] = "action"
    version: ClassVar[int] = 1

    node: str
    action: Callable[[Path], object] = field(default=_nothing, compare=False)
    sources: Sources = ()
    metrics: Mapping[str, float | int | str | bool] = field(default_factory=dict[str, float])

    def recipe(self) -> TextRecipe:
        return TextRecipe(text=self.node)

    def inputs(self) -> Mapping[str, Stage]:
        return dict(self.sources)

    def cost(self) -> Cost:
        return Cost()

    def resources(self) -> Resources:
        return ONE_CORE

    def build(self, inputs: Mapping[str, ArtifactRef], work: Path, ctx: RunContext) -> Metrics:
        del inputs, ctx
        self.action(work)
        return dict(self.metrics)


@dataclass(frozen=True)
class LinkStage(ActionStage):
    """As ActionStage, and may publish links to files outside the store."""

    name: ClassVar[str] = "link"
    links_allowed: ClassVar[bool] = True


def tree_bytes(folder: Path) -> dict[str, bytes]:
    """The published bytes of an artifact, by relative path, without manifest and receipt."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("manifest.json", "receipt.json")
    }

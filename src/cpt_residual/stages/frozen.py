"""The frozen plan: a resolved experiment and its ordered rows, for array tasks and for the record.

`plan.json` holds everything a row needs: no Hydra, no clock, no current directory. Rows are in
level order, and rows of one level have consecutive indices, so that one array per level runs them.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from cpt_residual.config.checks import check
from cpt_residual.config.schema import Experiment, Frozen, Launch
from cpt_residual.config.validate import dotted, problems_in
from cpt_residual.core.files import write_json_atomic
from cpt_residual.core.graph import Graph
from cpt_residual.core.stage import Resources, Stage
from cpt_residual.errors import ConfigError
from cpt_residual.stages.pack import PackStage

_AGAIN = "Write it again: python -m cpt_residual.plan +experiment=NAME --out PLAN"
_MOST_PROBLEMS = 8
_PACK_CORES = 8
"""Of a large pack, unless `launch.cores` says."""


class PlanRow(Frozen):
    """One artifact to build, on what it needs for it."""

    index: int
    level: int
    node: str
    stage: str
    fingerprint: str
    resources: Resources


class FrozenPlan(Frozen):
    """An experiment with its rows. `levels` lists row indices by level."""

    schema_version: Literal[2] = Field(default=2, alias="schema")
    experiment: str
    fingerprint: str
    levels: list[list[int]]
    rows: list[PlanRow]
    config: Experiment

    @classmethod
    def of(cls, experiment: Experiment, graph: Graph) -> FrozenPlan:
        """Freeze `experiment`; nodes that share an artifact share a row."""
        nodes = sorted(graph.distinct(), key=lambda node: node.level)
        rows = [
            PlanRow(
                index=index,
                level=node.level,
                node=node.stage.node,
                stage=node.stage.name,
                fingerprint=node.fingerprint,
                resources=_asked(node.stage, experiment.launch),
            )
            for index, node in enumerate(nodes)
        ]
        depth = 1 + max((row.level for row in rows), default=-1)
        return cls(
            experiment=experiment.name,
            fingerprint=graph.fingerprint,
            levels=[[row.index for row in rows if row.level == level] for level in range(depth)],
            rows=rows,
            config=experiment,
        )

    @property
    def lacks_gpus(self) -> bool:
        """Whether no row asks for a GPU because `launch.device=auto` found none here."""
        asked = any(row.resources.gpus_per_node for row in self.rows)
        return self.config.launch.device == "auto" and not asked

    def write(self, path: Path) -> None:
        """Write atomically, keys sorted."""
        write_json_atomic(path, self)

    @classmethod
    def read(cls, path: Path) -> FrozenPlan:
        """Raises ConfigError when the file is missing, cannot be read or is not a frozen plan."""
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            raise ConfigError(
                f"no plan at {path}",
                remedy=f"Write one: python -m cpt_residual.plan +experiment=NAME --out {path}",
            ) from None
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror}", remedy=_AGAIN) from None
        plan, problems = _parsed(content)
        if plan is None:
            raise ConfigError(
                f"{path} is not a frozen plan of this version", problems=problems, remedy=_AGAIN
            )
        try:
            check(plan.config)  # a plan that was edited by hand may contradict itself
        except ConfigError as error:
            raise ConfigError(
                f"{path}: {error.what}", problems=error.problems, remedy=_AGAIN
            ) from None
        return plan

    def row(self, index: int) -> PlanRow:
        """Raises ConfigError when there is no such row."""
        if not 0 <= index < len(self.rows):
            raise ConfigError(
                f"the plan has no row {index}",
                remedy=f"Rows run from 0 to {len(self.rows) - 1}.",
            )
        return self.rows[index]


def _asked(stage: Stage, launch: Launch) -> Resources:
    """What `stage` needs wherever it is built, not what the machine of the plan has."""
    if isinstance(stage, PackStage) and launch.cores is None:
        stage = replace(stage, available_cores=_PACK_CORES)
    return stage.resources()


def _parsed(content: bytes) -> tuple[FrozenPlan | None, list[str]]:
    """The plan in `content`, or what is wrong with it, one line each."""
    if not content.strip():
        return None, ["the file is empty"]
    try:
        return FrozenPlan.model_validate(json.loads(content.decode("utf-8"))), []
    except UnicodeDecodeError as error:
        return None, [f"not UTF-8: byte 0x{content[error.start]:02x} at byte offset {error.start}"]
    except json.JSONDecodeError as error:
        return None, [f"line {error.lineno}, column {error.colno}: not JSON: {error.msg}"]
    except ValidationError as error:
        lines = [f"{dotted(place)}: {text}" for place, text in problems_in(error, FrozenPlan)]
        more = [f"and {len(lines) - _MOST_PROBLEMS} more"] if len(lines) > _MOST_PROBLEMS else []
        return None, [*lines[:_MOST_PROBLEMS], *more]

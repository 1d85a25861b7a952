"""Probes of the procedural world: instructions, and questions about facts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from cpt_residual.base_model import PositiveInt
from cpt_residual.config.measures import Measure, MeasureRole, instruction_measures
from cpt_residual.config.suite_tasks import (
    Aggregate,
    AskedOf,
    SuiteInputs,
    TaskFile,
    Workload,
    existing_file,
)
from cpt_residual.config.suites import SuiteBase

_FOLDER = Path(__file__).parent
_PROMPTS_PER_TYPE = 16  # of a probe, for each of `world.num_prompts_per_type`
_PROMPT_TOKENS = 40
_INSTRUCTIONS = ("instruction_following", "new_instructions")
_INSTRUCTION_METRICS: dict[str, Aggregate] = {
    "prompt_level_strict_acc": "mean",
    "inst_level_strict_acc": "mean_of_checks",
    "prompt_level_loose_acc": "mean",
    "inst_level_loose_acc": "mean_of_checks",
    "prompt_level_strict_acc_open": "mean",
    "inst_level_strict_acc_open": "mean_of_checks",
    "prompt_level_loose_acc_open": "mean",
    "inst_level_loose_acc_open": "mean_of_checks",
    "closed_share": "mean",
}


class WorldSuite(SuiteBase):
    """Probes of the procedural world, scored by lm-eval through generated task files."""

    kind: Literal["world"]
    probes: Annotated[
        list[Literal["instruction_following", "new_instructions", "new_facts", "old_facts"]],
        Field(min_length=1),
    ]
    max_new_tokens: PositiveInt

    def measures(self, key: str) -> tuple[Measure, ...]:
        del key
        return tuple(measure for probe in self.probes for measure in _measures_of(probe))

    def workload(self, asked: AskedOf) -> list[Workload]:
        prompts = _PROMPTS_PER_TYPE * asked.prompts_per_type
        return [Workload(prompts, _PROMPT_TOKENS, self.max_new_tokens // 2)] * len(self.probes)

    def task_files(self, key: str, given: SuiteInputs, turn_end: str) -> Iterator[TaskFile]:
        del key
        for probe in self.probes:
            path = given.probes_dir and given.probes_dir / f"{probe}.jsonl"
            documents = existing_file(path, probe)
            asks = probe in _INSTRUCTIONS
            yield TaskFile(
                task=probe,
                template=_FOLDER / ("instructions.yaml" if asks else "facts.yaml"),
                documents=documents,
                arguments={"turn_end": turn_end},
                metrics=_instruction_metrics(documents)
                if asks
                else {"accuracy": "mean", "closed_share": "mean"},
                max_new_tokens=self.max_new_tokens,
            )

    def asks_through_chat(self) -> bool:
        return True

    def world_probes(self) -> list[str]:
        return [*self.probes]

    @classmethod
    def scorer_files(cls) -> tuple[Path, ...]:
        return (*super().scorer_files(), _FOLDER.parents[1] / "data" / "world" / "checks.py")


def _instruction_metrics(documents: Path) -> dict[str, Aggregate]:
    with documents.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    knows_answer = any(row.get("answer") is not None for row in rows)
    extra = ["obeyed_and_right"] * knows_answer + sorted({f"type/{row['type']}" for row in rows})
    return {**_INSTRUCTION_METRICS, **dict.fromkeys(extra, "mean")}


def _measures_of(probe: str) -> tuple[Measure, ...]:
    if probe == "instruction_following":
        return instruction_measures(probe)
    metric, label, short, role = _KNOWLEDGE[probe]
    return (Measure(task=probe, metric=metric, label=label, short=short, role=role),)


_KNOWLEDGE: dict[str, tuple[str, str, str, MeasureRole]] = {
    "new_instructions": (
        "obeyed_and_right",
        "instruction obeyed and new fact right",
        "IF + fact",
        "instructed_knowledge",
    ),
    "new_facts": ("accuracy", "new facts, asked in chat", "new facts", "new_knowledge"),
    "old_facts": ("accuracy", "old facts, asked in chat", "old facts", "old_knowledge"),
}
"""Probe -> metric, label, short label, role."""

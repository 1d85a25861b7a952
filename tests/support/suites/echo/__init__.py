"""A suite in one folder, as somebody else would add it: does the model repeat a letter?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from cpt_residual.base_model import PositiveInt
from cpt_residual.config.measures import Measure
from cpt_residual.config.suite_tasks import AskedOf, SuiteInputs, TaskFile, Workload
from cpt_residual.config.suites import SuiteBase

_FOLDER = Path(__file__).parent


class EchoSuite(SuiteBase):
    kind: Literal["echo"]
    max_new_tokens: PositiveInt

    def measures(self, key: str) -> tuple[Measure, ...]:
        label, role = "letters repeated", "reasoning"
        return (Measure(task=key, metric="repeated", label=label, short="echo", role=role),)

    def workload(self, asked: AskedOf) -> list[Workload]:
        return [Workload(requests=2, prompt_tokens=8, new_tokens=self.max_new_tokens)]

    def task_files(self, key: str, given: SuiteInputs, turn_end: str) -> Iterator[TaskFile]:
        yield TaskFile(
            task=key,
            template=_FOLDER / "echo.yaml",
            documents=_FOLDER / "letters.jsonl",
            metrics={"repeated": "mean"},
            max_new_tokens=self.max_new_tokens,
        )

    def asks_through_chat(self) -> bool:
        return True

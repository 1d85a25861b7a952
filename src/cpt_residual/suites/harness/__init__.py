"""Stock tasks of lm-eval, e.g. IFEval and MMLU."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from cpt_residual.config.measures import Measure
from cpt_residual.config.suite_tasks import AskedOf, HarnessTask, Workload
from cpt_residual.config.suites import SuiteBase
from cpt_residual.suites.harness.stock_tasks import stock_measures, stock_workload


class HarnessSuite(SuiteBase):
    """Stock lm-eval tasks by name."""

    kind: Literal["harness"]
    tasks: Annotated[list[HarnessTask], Field(min_length=1)]

    def measures(self, key: str) -> tuple[Measure, ...]:
        del key
        return tuple(measure for task in self.tasks for measure in stock_measures(task))

    def workload(self, asked: AskedOf) -> list[Workload]:
        del asked
        return [stock_workload(task) for task in self.tasks]

    def without_words(self) -> HarnessSuite:
        unsaid = {"metric": None, "role": None, "label": None}
        return self.model_copy(
            update={"tasks": [task.model_copy(update=unsaid) for task in self.tasks]}
        )

    def stock_tasks(self) -> list[HarnessTask]:
        return self.tasks

    def asks_through_chat(self) -> bool:
        return any(task.chat for task in self.tasks)

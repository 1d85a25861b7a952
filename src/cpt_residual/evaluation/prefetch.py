"""The data of lm-eval's own tasks, fetched ahead for machines without network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from cpt_residual.config.schema import HarnessSuite, HarnessTask, Suite
from cpt_residual.evaluation.silence_lm_eval import silence_lm_eval
from cpt_residual.evaluation.stock import find_stock_task, load_tasks


def stock_tasks(suites: Iterable[Suite]) -> list[HarnessTask]:
    """The tasks whose data comes from the hub, each once."""
    asked = (suite.tasks for suite in suites if isinstance(suite, HarnessSuite))
    return list({task.task: task for tasks in asked for task in tasks}.values())


def fetch_task_data(
    tasks: Iterable[HarnessTask], include_paths: tuple[Path, ...] = ()
) -> Iterator[str]:
    """Load each task as an evaluation does, which leaves its data in the cache of `datasets`;
    yields the names of those that are there. Raises EvaluationError for what is missing (also
    scorers' own data, such as nltk's for IFEval)."""
    for task in tasks:
        with silence_lm_eval():
            found = find_stock_task(task, include_paths)
            load_tasks(found.manager, [task.task], found.data_sets)
        yield task.task

"""Task files that lm-eval reads: small yaml files that include the templates of suites."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from cpt_residual.config.suite_tasks import TaskFile
from cpt_residual.evaluation import aggregation


def write_task_files(tasks: Iterable[TaskFile], folder: Path) -> Path:
    """Write one yaml file per task into `folder` (emptied first) and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.yaml"):
        old.unlink()
    for task in tasks:
        (folder / f"{task.task}.yaml").write_text(_yaml(task), encoding="utf-8")
    return folder


def _yaml(task: TaskFile) -> str:
    """The task file's text (JSON scalars are YAML)."""
    arguments = {"file": str(task.documents.resolve()), **task.arguments}
    lines = [
        f"include: {json.dumps(str(task.template))}",
        f"task: {json.dumps(task.task)}",
        f"dataset_kwargs: {json.dumps(arguments)}",
    ]
    if task.max_new_tokens is not None:
        greedy = f'{{"until": [], "do_sample": false, "max_gen_toks": {task.max_new_tokens}}}'
        lines.append(f"generation_kwargs: {greedy}")
    lines.append("metric_list:")
    for metric, aggregate in task.metrics.items():
        function = (
            "mean" if aggregate == "mean" else f"!function {aggregation.__name__}.{aggregate}"
        )
        lines += [
            f"  - metric: {json.dumps(metric)}",
            f"    aggregation: {function}",
            f"    higher_is_better: {json.dumps(aggregate not in aggregation.TRANSFORMS)}",
        ]
    return "\n".join(lines) + "\n"

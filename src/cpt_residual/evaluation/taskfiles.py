"""Task files that lm-eval reads: small yaml files that include our templates in `tasks/`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cpt_residual.config.cloze import cloze_task_name
from cpt_residual.evaluation.cloze.scoring import METRICS

INSTRUCTION_PROBES = frozenset({"instruction_following", "new_instructions"})

_TEMPLATES = Path(__file__).parent
_FUNCTIONS = "cpt_residual.evaluation.tasks.scoring"
_INSTRUCTION_METRICS = (
    "prompt_level_strict_acc",
    "inst_level_strict_acc",
    "prompt_level_loose_acc",
    "inst_level_loose_acc",
    "prompt_level_strict_acc_open",
    "inst_level_strict_acc_open",
    "prompt_level_loose_acc_open",
    "inst_level_loose_acc_open",
    "closed_share",
)
_HELDOUT_METRICS = ("bits_per_byte", "token_perplexity", "word_perplexity")
_LOWER_IS_BETTER = frozenset((*_HELDOUT_METRICS, "target_bits_per_byte"))


@dataclass(frozen=True)
class TaskFile:
    """One generated task: template, the file with its documents, settings, metrics. `chat`: asked
    through the chat template (generated answers); else the text as it stands."""

    task: str
    template: str
    documents: Path
    dataset: Mapping[str, str | int]
    metrics: Sequence[str]
    max_new_tokens: int | None = None
    chat: bool = True

    def yaml(self) -> str:
        """The task file's text (JSON scalars are YAML)."""
        dataset = {"file": str(self.documents.resolve()), **self.dataset}
        lines = [
            f"include: {json.dumps(str(_TEMPLATES / self.template))}",
            f"task: {json.dumps(self.task)}",
            f"dataset_kwargs: {json.dumps(dataset)}",
        ]
        if self.max_new_tokens is not None:
            generation = (
                f'{{"until": [], "do_sample": false, "max_gen_toks": {self.max_new_tokens}}}'
            )
            lines.append(f"generation_kwargs: {generation}")
        lines.append("metric_list:")
        for metric in self.metrics:
            lines += [
                f"  - metric: {json.dumps(metric)}",
                f"    aggregation: {_aggregation(metric)}",
                f"    higher_is_better: {json.dumps(metric not in _LOWER_IS_BETTER)}",
            ]
        return "\n".join(lines) + "\n"


def probe_task(probe: str, documents: Path, *, turn_end: str, max_new_tokens: int) -> TaskFile:
    """The task of one probe file of the procedural world."""
    metrics: list[str] = ["accuracy", "closed_share"]
    if probe in INSTRUCTION_PROBES:
        with documents.open(encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
        metrics = [*_INSTRUCTION_METRICS]
        if any(row.get("answer") is not None for row in rows):
            metrics.append("obeyed_and_right")
        metrics += sorted({f"type/{row['type']}" for row in rows})
    return TaskFile(
        task=probe,
        template=f"tasks/{'instructions' if probe in INSTRUCTION_PROBES else 'facts'}.yaml",
        documents=documents,
        dataset={"turn_end": turn_end},
        metrics=metrics,
        max_new_tokens=max_new_tokens,
    )


def heldout_task(corpus: str, documents: Path, *, max_documents: int) -> TaskFile:
    """The task of the held-out documents of one corpus: `heldout_<corpus>`."""
    return TaskFile(
        task=f"heldout_{corpus}",
        template="tasks/heldout.yaml",
        documents=documents,
        dataset={"max_documents": max_documents},
        metrics=_HELDOUT_METRICS,
    )


def cloze_task(suite: str, documents: Path) -> TaskFile:
    """The task of the questions of one `cloze` suite."""
    return TaskFile(
        task=cloze_task_name(suite),
        template="cloze/cloze.yaml",
        documents=documents,
        dataset={},
        metrics=METRICS,
        chat=False,
    )


def write_task_files(tasks: Iterable[TaskFile], folder: Path) -> Path:
    """Write one yaml file per task into `folder` (emptied first) and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.yaml"):
        old.unlink()
    for task in tasks:
        (folder / f"{task.task}.yaml").write_text(task.yaml(), encoding="utf-8")
    return folder


def _aggregation(metric: str) -> str:
    if metric.startswith("inst_level_"):
        return f"!function {_FUNCTIONS}.flat_mean"
    if metric in ("bits_per_byte", "target_bits_per_byte"):
        return f"!function {_FUNCTIONS}.bits_per_byte"
    if metric in _HELDOUT_METRICS:
        return f"!function {_FUNCTIONS}.perplexity"
    return "mean"

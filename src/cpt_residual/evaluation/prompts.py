"""The prompts that the suites of an evaluation ask, so that a corpus can be checked for them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, cast

from cpt_residual.config.suite_tasks import HarnessTask
from cpt_residual.data.filters.references import Reference
from cpt_residual.errors import EvaluationError
from cpt_residual.evaluation.silence_lm_eval import silence_lm_eval
from cpt_residual.evaluation.stock import find_stock_task, load_tasks


def prompts_of(
    tasks: Sequence[str],
    probes: Sequence[str],
    *,
    probes_dir: Path | None = None,
    include_paths: tuple[Path, ...] = (),
) -> Iterator[Reference]:
    """Every question of lm-eval's `tasks` (groups: of all their tasks), then of the world's
    `probes`; all documents that an evaluation without a limit would ask, without few-shot examples
    and the labels that a task sets before and after each. A prompt with choices counts with them.

    Reads or downloads the tasks' data. Raises EvaluationError where something is missing.
    """
    with silence_lm_eval():
        for name in tasks:
            yield from _of_stock_task(name, include_paths)
    for probe in probes:
        yield from _of_probe(probe, probes_dir)


def _of_stock_task(name: str, include_paths: tuple[Path, ...]) -> Iterator[Reference]:
    found = find_stock_task(HarnessTask(task=name), include_paths)
    for task in _single(load_tasks(found.manager, [name], found.data_sets)):
        asked = [_asked(task, document) for document in task.eval_docs]
        for text in without_labels(asked):
            yield Reference(task=str(task.task_name), text=text)


def _single(loaded: Sequence[Any]) -> Iterator[Any]:
    """The single tasks of what lm-eval loaded; a task in two groups comes once."""
    seen: set[str] = set()
    for each in loaded:
        tasks = cast("Sequence[Any]", each.get_all_tasks()) if _is_group(each) else [each]
        for task in tasks:
            if task.task_name not in seen:
                seen.add(task.task_name)
                yield task


def _is_group(loaded: Any) -> bool:
    return hasattr(loaded, "get_all_tasks")


def _asked(task: Any, document: Any) -> str:
    """What a task shows before the answer. Where that is the answer's number only (Winogrande), all
    choices with what follows them; where it is nothing (perplexity), the text that is scored."""
    text: object = task.doc_to_text(document)
    if isinstance(text, str) and text.strip():
        return text
    target: object = task.doc_to_target(document)
    if isinstance(text, str) or task.config.doc_to_choice is None:
        return str(target)
    choices = cast("Sequence[str]", task.doc_to_choice(document))
    return "\n".join(f"{choice} {target}" for choice in choices)


def without_labels(texts: Sequence[str]) -> list[str]:
    """`texts` without what all of them begin with, up to a colon or line end (`Question:`), and end
    with, from a line end on (`Answer:`). A corpus that holds the question need not have these."""
    if len(set(texts)) < 2:
        return [*texts]
    begins = _common_beginning(texts)
    begin = 1 + max(begins.rfind(":"), begins.rfind("\n"))
    rest = [text[begin:] for text in texts]
    ends = _common_beginning([text[::-1] for text in rest])[::-1]
    end = ends.find("\n")
    size = 0 if end < 0 else len(ends) - end
    cut = [text[: len(text) - size].strip() for text in rest]
    return cut if all(cut) else [*texts]


def _common_beginning(texts: Sequence[str]) -> str:
    """What all texts begin with: what the first and the last in order of the alphabet do."""
    first, last = min(texts), max(texts)
    same = takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    return "".join(pair[0] for pair in same)


def _of_probe(probe: str, probes_dir: Path | None) -> Iterator[Reference]:
    file = probes_dir / f"{probe}.jsonl" if probes_dir else None
    if file is None or not file.is_file():
        raise EvaluationError(
            f"A suite asks for '{probe}', but the world has no such probes.",
            remedy="Give the experiment a world for its probes, or take the suite out.",
        )
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            yield Reference(task=probe, text=str(json.loads(line)["prompt"]))

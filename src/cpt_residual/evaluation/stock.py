"""lm-eval's own tasks: finding them, checking what they need before anything is generated."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from cpt_residual.config.suite_tasks import HarnessTask
from cpt_residual.errors import EvaluationError, did_you_mean
from cpt_residual.evaluation.lazy_import import lazy_import
from cpt_residual.evaluation.scorer import hash_sources
from cpt_residual.evaluation.silence_lm_eval import silence_lm_eval

PUNKT = "tokenizers/punkt_tab"
_MAX_LISTED = 5


@dataclass(frozen=True)
class StockTask:
    """A stock task or group that was found. `manager` is lm-eval's TaskManager that knows it."""

    wanted: HarnessTask
    manager: Any
    data_sets: tuple[str, ...]
    scorer_sha256: str


def find_stock_task(wanted: HarnessTask, include_paths: Sequence[Path] = ()) -> StockTask:
    """Find a task by name, and check what can be checked without its data.

    Reading all of lm-eval's fourteen thousand task files takes seconds, so the folders that the
    name points to (`arc` for `arc_challenge`) are tried first. Raises `EvaluationError` for
    unknown names, for few-shot numbers the task would ignore, and for missing nltk data.
    """
    manager = _manager_that_knows(wanted.task, include_paths)
    leaves = list(_leaves(manager.task_index, wanted.task))
    configs = [_config(leaf) for leaf in leaves]
    _check_num_fewshot(wanted, configs)
    if any("ifeval" in str(config.get("process_results")) for config in configs):
        _prepare_ifeval()
    folders = {Path(leaf.yaml_path).parent for leaf in leaves if leaf.yaml_path}
    return StockTask(
        wanted=wanted,
        manager=manager,
        data_sets=tuple(sorted({_data_set(config) for config in configs})),
        scorer_sha256=hash_sources(sorted(folders)),
    )


def load_tasks(manager: Any, names: Sequence[str], data_sets: Sequence[str] = ()) -> list[Any]:
    """Build lm-eval's task (and group) objects; this reads or downloads their data."""
    datasets_error: type[Exception] = lazy_import("datasets.exceptions").DatasetsError

    try:
        loaded = manager.load(list(names))
    except (OSError, ValueError, datasets_error) as error:
        if isinstance(error, ValueError) and "find cache" not in str(error):
            raise
        raise _no_data(names, data_sets, error) from error
    groups, children = loaded["groups"], set[str]()
    for group in groups.values():
        children.update(task.task_name for task in group.get_all_tasks())
        children.update(inner.name for inner in group.get_all_groups(recursive=True))
    top_groups = [group for name, group in groups.items() if name not in children]
    return top_groups + [task for name, task in loaded["tasks"].items() if name not in children]


def fetch_task_data(
    tasks: Iterable[HarnessTask], include_paths: tuple[Path, ...] = ()
) -> Iterator[str]:
    """Load each task once, as an evaluation does, which leaves its data in the cache of `datasets`;
    yields the names of those that are there. Raises EvaluationError for what is unknown or missing
    (also scorers' own data, such as nltk's for IFEval)."""
    for name, task in {task.task: task for task in tasks}.items():
        with silence_lm_eval():
            found = find_stock_task(task, include_paths)
            load_tasks(found.manager, [name], found.data_sets)
        yield name


def require_tasks(tasks: Iterable[HarnessTask]) -> None:
    """Raises EvaluationError where `fetch_task_data` does."""
    for _ in fetch_task_data(tasks):
        pass


def _manager_that_knows(name: str, include_paths: Sequence[Path]) -> Any:
    tasks = lazy_import("lm_eval.tasks")
    root = Path(tasks.__file__).parent
    words = name.split("_")
    guesses = [root / "_".join(words[:end]) for end in range(len(words), 0, -1)]
    for folders in ([*include_paths], *([guess] for guess in guesses if guess.is_dir())):
        if folders:
            manager = tasks.TaskManager(include_path=[*folders], include_defaults=False)
            if name in manager.task_index:
                return manager
    manager = tasks.TaskManager(include_path=[*include_paths] or None)
    if name not in manager.task_index:
        raise EvaluationError(
            f"lm-eval has no task '{name}'.{did_you_mean(name, manager.all_tasks)}",
            remedy="`lm-eval ls tasks` prints all of them.",
        )
    return manager


def _leaves(index: Mapping[str, Any], name: str) -> Iterator[Any]:
    """Index entries of the single tasks that a task, group or tag stands for."""
    entry = index.get(name)
    if entry is None:
        return
    if entry.kind.name == "TAG":
        members: Sequence[object] = sorted(entry.tags)
    elif entry.kind.name == "GROUP":
        members = cast("Sequence[object]", entry.cfg.get("task") or ())
    else:
        yield entry
        return
    for member in members:
        for child in _names(member):
            yield from _leaves(index, child)


def _names(member: object) -> list[str]:
    """Names of a group member: a name, an inline dict with a name, or one with a list of names."""
    if isinstance(member, dict):
        inline = cast("Mapping[str, object]", member)
        return _names(inline.get("task") or inline.get("group"))
    if isinstance(member, list):
        return [name for each in cast("list[object]", member) for name in _names(each)]
    return [member] if isinstance(member, str) else []


def _config(entry: Any) -> Mapping[str, object]:
    return cast("Mapping[str, object]", entry.cfg or {})


def _data_set(config: Mapping[str, object]) -> str:
    path, name = config.get("dataset_path"), config.get("dataset_name")
    return f"{path} ({name})" if name else str(path)


def _check_num_fewshot(wanted: HarnessTask, configs: Sequence[Mapping[str, object]]) -> None:
    fixed = any(config.get("num_fewshot") == 0 for config in configs)
    if wanted.num_fewshot and fixed:
        raise EvaluationError(
            f"Task '{wanted.task}' is defined without examples, and lm-eval would ignore "
            f"num_fewshot={wanted.num_fewshot}.",
            remedy="Remove num_fewshot from the suite, or set it to 0.",
        )


def _prepare_ifeval() -> None:
    """IFEval's scorer needs nltk data (lm-eval finds out after generation), seeded langdetect."""
    nltk_data = lazy_import("nltk").data
    try:
        nltk_data.find(PUNKT)
    except LookupError as error:
        raise EvaluationError(
            "IFEval's scorer needs the nltk data 'punkt_tab', which is not installed.",
            problems=[f"searched: {folder}" for folder in nltk_data.path],
            remedy="Nothing was generated yet. Where there is a network: "
            "`python -m nltk.downloader punkt_tab`; else copy tokenizers/punkt_tab into one of "
            "these folders (NLTK_DATA adds one).",
        ) from error
    lazy_import("langdetect").DetectorFactory.seed = 0


def _no_data(names: Sequence[str], data_sets: Sequence[str], error: Exception) -> EvaluationError:
    reason = (str(error).splitlines() or [""])[0][:300]
    repos = sorted({data_set.split(" ")[0] for data_set in data_sets})
    fetch = "; ".join(f"load_dataset('{repo}')" for repo in repos)
    return EvaluationError(
        f"The data of task {', '.join(names)} cannot be loaded.",
        problems=[
            *_listed(data_sets),
            f"{type(error).__name__}: {reason}",
        ],
        remedy="Fetch it once where there is a network (HF_HUB_OFFLINE unset, the same HF_HOME): "
        "the same run with --prefetch, or by hand "
        f'`python -c "from datasets import load_dataset; {fetch}"`. Data sets with several '
        "configurations need the one in brackets as second argument.",
    )


def _listed(data_sets: Sequence[str]) -> list[str]:
    shown = [f"data set: {each}" for each in data_sets[:_MAX_LISTED]]
    more = len(data_sets) - len(shown)
    return [*shown, f"and {more} more"] if more else shown

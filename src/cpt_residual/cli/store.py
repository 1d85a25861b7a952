"""The store commands: lineage, verify, gc.

python -m cpt_residual.cli lineage VARIANT --run outputs/runs/RUN
python -m cpt_residual.cli verify --run outputs/runs/RUN
python -m cpt_residual.cli gc --root outputs [--delete]
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cpt_residual.core.disk import format_bytes
from cpt_residual.errors import ConfigError
from cpt_residual.launch.door import say

if TYPE_CHECKING:
    from cpt_residual.core.store import Store
    from cpt_residual.stages.execute import Builder

_MOST_RUNS = 12


def lineage(
    run: Annotated[Path, typer.Option(help="a run folder below outputs/runs")],
    node: Annotated[str, typer.Argument(help="a stage or a variant")] = "report",
) -> None:
    """Print what a stage of a run was made from, as a tree."""
    builder = _builder(run)
    name = node if node in builder.graph else f"evaluate:{node}"
    say(builder.graph.lineage(builder.graph[name if name in builder.graph else node]))
    say(f"store: {builder.store.root}")


def verify_run(run: Path) -> int:
    """Hash every file of a run's artifacts; 1 when one differs from its manifest, else 0."""
    builder = _builder(run)
    say(f"store: {builder.store.root}")
    bad = 0
    for node in builder.graph.distinct():
        status = builder.store.status(builder.graph, node, deep=True)
        bad += status.state != "ready"
        lines = status.problems or (status.reason,)
        for line in lines:
            say(f"{status.state:<8} {node.stage.node:<36} {line}")
    return 1 if bad else 0


def gc(
    root: Annotated[Path, typer.Option(help="paths.root of the experiments")] = Path("outputs"),
    *,
    delete: Annotated[bool, typer.Option("--delete", help="delete what is listed")] = False,
) -> None:
    """List artifacts and scratch that no recorded run refers to; delete them with --delete."""
    from cpt_residual.core import gc as garbage

    store = _store_below(root)
    items = garbage.collect(store, root / "runs")
    for item in items:  # plain lines: a path is never cut or rewritten
        say(f"{format_bytes(item.bytes):>10}  {item.path}  {item.reason}")
    total = format_bytes(sum(item.bytes for item in items))
    count = "1 item" if len(items) == 1 else f"{len(items)} items"
    if delete:
        gone = garbage.delete(store, items)
        freed = format_bytes(sum(item.bytes for item in gone))
        say(f"deleted {len(gone)} of {count} ({freed})")
    else:
        hint = "; add --delete to remove them" if items else ""
        say(f"{count}, {total}{hint}")


def _builder(run: Path) -> Builder:
    """The run's graph, and the store beside its folder: a run that was copied with its store
    looks after its own copy. A run alone belongs to the store its plan names."""
    from cpt_residual.stages.execute import Builder
    from cpt_residual.stages.frozen import FrozenPlan

    if not (run / "plan.json").is_file():
        raise _no_run(run)
    plan = FrozenPlan.read(run / "plan.json")
    root = run.resolve().parent.parent
    if not (root / "store").is_dir():
        root = Path(plan.config.paths.root)
    paths = plan.config.paths.model_copy(update={"root": str(root)})
    builder = Builder.of(plan.config.model_copy(update={"paths": paths}))
    changed = [
        row.node
        for row in plan.rows
        if row.node not in builder.graph or builder.graph[row.node].fingerprint != row.fingerprint
    ]
    if changed:
        say(
            f"warning: {len(changed)} of {len(plan.rows)} stages are not those of the run: the "
            f"code, a local source or plan.json was changed since ({_listed(changed)})",
            stream=sys.stderr,
        )
    return builder


def _no_run(run: Path) -> ConfigError:
    """What to say about a folder without a plan: the runs in or beside it, the nearest first."""
    runs: list[str] = []
    for place in (run / "runs", run, run.parent, run.parent / "runs"):
        plans = () if runs else sorted(place.glob("*/plan.json"), reverse=True)
        runs += [str(plan.parent) for plan in plans]
    reason = "it has no plan.json" if run.is_dir() else "no such folder"
    return ConfigError(
        f"{run} is not the folder of a run: {reason}",
        problems=runs[:_MOST_RUNS] + (["..."] if len(runs) > _MOST_RUNS else []),
        remedy="Give --run one folder below paths.root/runs"
        + (", for example one of these." if runs else ": outputs/runs/TIME-EXPERIMENT-PLAN."),
    )


def _store_below(root: Path) -> Store:
    from cpt_residual.core.store import Store

    if (root / "store").is_dir():
        return Store(root / "store")
    problem = f"no such folder: {root / 'store'}" if root.is_dir() else f"no such folder: {root}"
    hint = f" Did you mean {root.parent}?" if (root.parent / "store").is_dir() else ""
    raise ConfigError(
        f"there is no store below {root}.{hint}",
        problems=[problem],
        remedy="Nothing was deleted. --root is the paths.root of the experiments: the folder that "
        "holds store and runs.",
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")

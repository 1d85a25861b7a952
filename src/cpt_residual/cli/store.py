"""The stand-alone verbs: look after a store of artifacts.

python -m cpt_residual.cli lineage VARIANT --run outputs/runs/RUN
python -m cpt_residual.cli verify --run outputs/runs/RUN
python -m cpt_residual.cli gc --root outputs [--delete]
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from cpt_residual.core import gc as garbage
from cpt_residual.core.disk import format_bytes
from cpt_residual.core.store import Store
from cpt_residual.errors import CptResidualError
from cpt_residual.stages.execute import Builder
from cpt_residual.stages.frozen import FrozenPlan

app = typer.Typer(
    help="Look after the artifacts of cpt_residual.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

RunOption = Annotated[Path, typer.Option(help="a run folder below outputs/runs")]


@app.command()
def lineage(
    run: RunOption,
    node: Annotated[str, typer.Argument(help="a stage or a variant")] = "report",
) -> None:
    """Print what a stage of a run was made from, as a tree."""
    builder = _builder(run)
    name = node if node in builder.graph else f"evaluate:{node}"
    print(builder.graph.lineage(builder.graph[name if name in builder.graph else node]))


@app.command()
def verify(run: RunOption) -> None:
    """Hash every file of a run's artifacts; exit status 1 when one differs from its manifest."""
    builder = _builder(run)
    console = Console(soft_wrap=True, highlight=False)
    bad = 0
    for node in builder.graph.distinct():
        status = builder.store.status(builder.graph, node, deep=True)
        bad += status.state != "ready"
        lines = status.problems or (status.reason,)
        for line in lines:
            console.print(f"{status.state:<8} {node.stage.node:<36} {line}")
    raise typer.Exit(1 if bad else 0)


@app.command()
def gc(
    root: Annotated[Path, typer.Option(help="paths.root of the experiments")] = Path("outputs"),
    *,
    delete: Annotated[bool, typer.Option("--delete", help="delete what is listed")] = False,
) -> None:
    """List artifacts and scratch that no recorded run refers to; delete them with --delete."""
    store = Store(root / "store")
    items = garbage.collect(store, root / "runs")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("size", "path", "why"):
        table.add_column(column, no_wrap=column != "why")
    for item in items:
        table.add_row(format_bytes(item.bytes), str(item.path), item.reason)
    console = Console(soft_wrap=True, highlight=False)
    if items:
        console.print(table)
    total = format_bytes(sum(item.bytes for item in items))
    if delete:
        gone = garbage.delete(store, items)
        freed = format_bytes(sum(item.bytes for item in gone))
        console.print(f"deleted {len(gone)} of {len(items)} items ({freed})")
    else:
        hint = "; add --delete to remove them" if items else ""
        console.print(f"{len(items)} items, {total}{hint}")


def _builder(run: Path) -> Builder:
    return Builder.of(FrozenPlan.read(run / "plan.json").config)


def main() -> None:
    """Entry point; ends the process with the exit status."""
    try:
        app()
    except CptResidualError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()

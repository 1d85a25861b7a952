"""The `cpt-residual` command line application and its exit status.

cpt-residual compute --base B --instruct I --out R
cpt-residual apply --target T --residual R --alpha 1.0 --out O
cpt-residual apply --target T --base B --instruct I --out O
cpt-residual inspect | verify | geometry | card | export
cpt-residual lineage | gc
cpt-residual data inspect ARTIFACT

Exit status: 0 only when the output is complete and checked, 1 when a stored artifact differs from
its manifest, 2 bad input, 130 interrupted, 141 when the reader of the output is gone. Heavy
libraries are imported by the verb that needs them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

import typer

from cpt_residual.cli import data, export, look, make, store
from cpt_residual.launch.door import enter

app = typer.Typer(
    help="Take instruction following from one model to another, and look after artifacts.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command()(make.compute)
app.command()(make.apply)
app.command()(look.inspect)
app.command()(look.verify)
app.command()(look.geometry)
app.command()(look.card)
app.command()(export.export)
app.command()(store.lineage)
app.command()(store.gc)
app.add_typer(data.app, name="data")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs the verb; ends the process with the exit status."""
    sys.exit(enter(lambda: _main(arguments), resumes="nothing was published"))


def _main(arguments: Sequence[str] | None) -> int:
    app(arguments, prog_name="cpt-residual")  # ends with SystemExit
    return 0

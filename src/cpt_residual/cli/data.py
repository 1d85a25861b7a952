"""Verbs for packs and corpora.

cpt-residual data inspect ARTIFACT [--rows N] [--figures DIR] [--verify] [--json]
cpt-residual data export PACK --out DIR [--to parquet|hf]
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cpt_residual.cli.options import Json
from cpt_residual.cli.terminal import Terminal, interruptible
from cpt_residual.core.disk import require_writable, writing
from cpt_residual.errors import ConfigError
from cpt_residual.launch.console import UserConsole

if TYPE_CHECKING:
    from cpt_residual.data.inspection.corpus import CorpusInspection
    from cpt_residual.data.inspection.decoding import TokenDecoder
    from cpt_residual.data.inspection.lineage import Lineage
    from cpt_residual.data.inspection.looking import Looking
    from cpt_residual.data.inspection.pack import PackInspection
    from cpt_residual.report.figures import FigureNote

app = typer.Typer(help="Look at packs and corpora; hand packs to others.", no_args_is_help=True)

_PLAIN_WIDTH = 100
_DATA_STAGES = ("pack", "corpus", "world")

Artifact = Annotated[
    str,
    typer.Argument(help="a folder, the first digits of a fingerprint, or a name such as pack:cpt"),
]
Root = Annotated[Path, typer.Option(help="paths.root of the experiments, for digits and names")]
Rows = Annotated[
    int, typer.Option(min=0, max=1000, help="rows of a pack, or documents of each file, to show")
]


@app.command()
def inspect(  # noqa: PLR0913 - a verb's options
    artifact: Artifact,
    root: Root = Path("outputs"),
    rows: Rows = 3,
    seed: Annotated[int, typer.Option(help="which rows or documents")] = 0,
    tokenizer: Annotated[
        Path | None, typer.Option(help="a model directory; default: the one in the store")
    ] = None,
    figures: Annotated[Path | None, typer.Option(help="write PNG figures into this folder")] = None,
    *,
    full: Annotated[bool, typer.Option("--full", help="show samples in full length")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="also read and hash every file")] = False,
    as_json: Json = False,
) -> None:
    """Count a pack or a corpus again from its files, and show what is in it.

    Exit status 1 when the files differ from the ledger or the manifest.
    """
    from cpt_residual.cli.artifacts import find_artifact
    from cpt_residual.data.inspection.looking import Looking

    terminal = Terminal(as_json=as_json)
    path = find_artifact(artifact, root=root, stages=_DATA_STAGES)
    if figures is not None:
        require_writable(figures)
    with interruptible("nothing was changed"), terminal.progress("inspect", path.name) as report:
        looking = Looking(rows=rows, seed=seed, verify=verify, report=report)
        found = _inspected(path, tokenizer, looking, terminal)
        notes = _draw(found, figures) if figures else ()
    _tell(found, figures, notes, terminal=terminal, full=full, as_json=as_json)
    if any(check.state == "differs" for check in found.checks):
        raise typer.Exit(1)


@app.command()
def export(
    pack: Artifact,
    out: Annotated[Path, typer.Option(help="a new folder")],
    root: Root = Path("outputs"),
    to: Annotated[
        Literal["parquet", "hf"],
        typer.Option(help="parquet: for datasets.load_dataset; hf: for datasets.load_from_disk"),
    ] = "parquet",
    *,
    as_json: Json = False,
) -> None:
    """Write a pack as a data set of the Hugging Face libraries, its ledger beside it."""
    from cpt_residual.cli.artifacts import find_artifact
    from cpt_residual.data.export import export_pack
    from cpt_residual.data.inspection.looking import kind_of, read_manifest

    terminal = Terminal(as_json=as_json)
    path = find_artifact(pack, root=root, stages=("pack",))
    kind = kind_of(path, read_manifest(path))
    if kind != "pack":
        raise ConfigError(
            f"{path} is a {kind}, not a pack",
            problems=["its documents are JSON lines, which datasets.load_dataset('json') reads"],
            remedy="Nothing was written. Give the folder, the digits or the name of a pack.",
        )
    require_writable(out)
    with (
        interruptible("no output was made; run the same command again"),
        terminal.progress("export", out.name) as report,
    ):
        num_rows = export_pack(path, out, layout=to, progress=report)
    terminal.result(
        {"out": str(out), "num_rows": num_rows, "layout": to},
        lambda: {"written": str(out), "rows": f"{num_rows:,}", "layout": to},
    )


def _inspected(
    path: Path, tokenizer: Path | None, looking: Looking, terminal: Terminal
) -> PackInspection | CorpusInspection:
    from cpt_residual.data.inspection.lineage import Lineage
    from cpt_residual.data.inspection.looking import kind_of

    lineage = Lineage.of(path)
    kind = kind_of(path, lineage.manifest)
    if kind == "pack":
        from cpt_residual.data.inspection.pack import inspect_pack

        return inspect_pack(lineage, _decoder(lineage, tokenizer, looking, terminal), looking)
    if tokenizer is not None:
        raise ConfigError(
            f"{path} is a {kind}: its documents are text, not tokens",
            problems=[f"--tokenizer {tokenizer}"],
            remedy="Leave --tokenizer out.",
        )
    from cpt_residual.data.inspection.corpus import inspect_corpus

    return inspect_corpus(path, lineage.manifest, looking)


def _decoder(
    lineage: Lineage, tokenizer: Path | None, looking: Looking, terminal: Terminal
) -> TokenDecoder | None:
    """What was asked for, else what the pack was made with; None (and a note) when it is gone."""
    if tokenizer is None and not looking.rows:
        return None
    from cpt_residual.data.inspection.decoding import TokenDecoder
    from cpt_residual.data.pack_format import open_pack

    directory = tokenizer or lineage.input("tokenizer")
    if directory is not None:
        return TokenDecoder.of_pack(directory, open_pack(lineage.path).ledger)
    why = "there is no manifest" if lineage.manifest is None else "the model is not in the store"
    terminal.note(
        f"rows are shown as token ids: {why}, so the tokenizer is not known; give --tokenizer "
        "the directory of the model"
    )
    return None


def _draw(found: PackInspection | CorpusInspection, folder: Path) -> tuple[FigureNote, ...]:
    from cpt_residual.data.inspection.pack import PackInspection
    from cpt_residual.report.data_figures import draw_corpus_figures, draw_pack_figures

    with writing(folder):
        if isinstance(found, PackInspection):
            return draw_pack_figures(found, folder)
        return draw_corpus_figures(found, folder)


def _tell(
    found: PackInspection | CorpusInspection,
    folder: Path | None,
    notes: tuple[FigureNote, ...],
    *,
    terminal: Terminal,
    full: bool,
    as_json: bool,
) -> None:
    from cpt_residual.cli.data_text import show_corpus, show_pack
    from cpt_residual.data.inspection.pack import PackInspection

    paths = {n.name: f"{folder}/{n.name}.png" for n in notes if n.skipped is None}
    if as_json:
        terminal.result(found.model_dump(mode="json") | {"figures": paths}, dict)
        return
    out = UserConsole()
    if not out.is_terminal:
        out.width = _PLAIN_WIDTH
    if isinstance(found, PackInspection):
        show_pack(out, found, full=full)
    else:
        show_corpus(out, found, full=full)
    for note in notes:
        told = paths.get(note.name) or f"not drawn: {note.skipped}"
        out.print_text(f"figure {note.name}: {told}")

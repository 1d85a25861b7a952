"""The `data` commands: inspect and export packs and corpora.

cpt-residual data inspect ARTIFACT [--rows N] [--figures DIR] [--verify] [--json]
cpt-residual data export PACK --out DIR [--to parquet|hf]
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypedDict

import typer

from cpt_residual.cli.options import Json
from cpt_residual.cli.terminal import Terminal, interruptible
from cpt_residual.core.disk import require_writable, writing
from cpt_residual.errors import ConfigError
from cpt_residual.launch.console import UserConsole

if TYPE_CHECKING:
    from cpt_residual.core.artifact import Manifest
    from cpt_residual.core.stage import ProgressReport
    from cpt_residual.data.inspection.corpus import CorpusInspection
    from cpt_residual.data.inspection.decoding import TokenDecoder
    from cpt_residual.data.inspection.pack import PackInspection

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
    figures: Annotated[
        Path | None, typer.Option(help="write a figure of the lengths into this folder")
    ] = None,
    *,
    full: Annotated[bool, typer.Option("--full", help="show samples in full length")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="also read and hash every file")] = False,
    as_json: Json = False,
) -> None:
    """Count a pack or a corpus again from its files, and show what is in it.

    Exit status 1 when the files differ from the ledger or the manifest.
    """
    from cpt_residual.cli.artifacts import find_artifact

    terminal = Terminal(as_json=as_json)
    path = find_artifact(artifact, root=root, stages=_DATA_STAGES)
    if figures is not None:
        require_writable(figures)
    with interruptible("nothing was changed"), terminal.progress("inspect", path.name) as report:
        asked = _Asked(samples=(rows, seed), verify=verify, report=report)
        found = _inspected(path, tokenizer, asked, terminal)
        figure = _draw(found, figures) if figures else None
    _show(found, figure, terminal=terminal, full=full, as_json=as_json)
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
    from cpt_residual.data.documents.manifest import read_manifest
    from cpt_residual.data.inspection.artifacts import kind_of
    from cpt_residual.data.packing.export import export_pack

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


class _Asked(TypedDict):
    """samples: how many rows or documents to show, and the seed that chooses them."""

    samples: tuple[int, int]
    verify: bool
    report: ProgressReport


def _inspected(
    path: Path, tokenizer: Path | None, asked: _Asked, terminal: Terminal
) -> PackInspection | CorpusInspection:
    from cpt_residual.data.documents.manifest import read_manifest
    from cpt_residual.data.inspection.artifacts import kind_of

    manifest = read_manifest(path)
    kind = kind_of(path, manifest)
    if kind == "pack":
        from cpt_residual.data.inspection.pack import inspect_pack

        decoder = _decoder(path, manifest, tokenizer, terminal) if asked["samples"][0] else None
        return inspect_pack(path, manifest, decoder, **asked)
    if tokenizer is not None:
        raise ConfigError(
            f"{path} is a {kind}: its documents are text, not tokens",
            problems=[f"--tokenizer {tokenizer}"],
            remedy="Leave --tokenizer out.",
        )
    from cpt_residual.data.inspection.corpus import inspect_corpus

    return inspect_corpus(path, manifest, **asked)


def _decoder(
    path: Path, manifest: Manifest | None, tokenizer: Path | None, terminal: Terminal
) -> TokenDecoder | None:
    """What was asked for, else what the pack was made with; None (and a note) when it is gone."""
    from cpt_residual.data.inspection.artifacts import tokenizer_of
    from cpt_residual.data.inspection.decoding import TokenDecoder
    from cpt_residual.data.packing.pack_format import open_pack

    directory = tokenizer or tokenizer_of(path, manifest)
    if directory is not None:
        return TokenDecoder.of_pack(directory, open_pack(path).ledger)
    why = "there is no manifest" if manifest is None else "the model is not in the store"
    terminal.note(
        f"rows are shown as token ids: {why}, so the tokenizer is not known; give --tokenizer "
        "the directory of the model"
    )
    return None


def _draw(found: PackInspection | CorpusInspection, folder: Path) -> Path | None:
    from cpt_residual.data.inspection.pack import PackInspection
    from cpt_residual.report.length_figure import draw_lengths

    with writing(folder):
        if isinstance(found, PackInspection):
            curves = {each.corpus: each.lengths for each in found.sources if each.lengths}
            return draw_lengths(folder, curves, "tokens")
        curves = {each.name: each.lengths for each in found.files if each.lengths}
        return draw_lengths(folder, curves, "characters")


def _show(
    found: PackInspection | CorpusInspection,
    figure: Path | None,
    *,
    terminal: Terminal,
    full: bool,
    as_json: bool,
) -> None:
    from cpt_residual.cli.data_text import show_corpus, show_pack
    from cpt_residual.data.inspection.pack import PackInspection

    if as_json:
        document = found.model_dump(mode="json", by_alias=True)
        document["figures"] = {} if figure is None else {"lengths": str(figure)}
        terminal.result(document, dict)
        return
    out = UserConsole()
    if not out.is_terminal:
        out.width = _PLAIN_WIDTH
    if isinstance(found, PackInspection):
        show_pack(out, found, full=full)
    else:
        show_corpus(out, found, full=full)
    if figure is not None:
        out.print_text(f"figure lengths: {figure}")

"""The read-only commands: inspect, verify, geometry, card."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import JsonValue

from cpt_residual.cli.options import (
    MODEL,
    Base,
    Instruct,
    Json,
    MaybeBase,
    MaybeInstruct,
    Threads,
    num_threads,
    pinned_reference,
)
from cpt_residual.cli.store import verify_run
from cpt_residual.cli.terminal import Terminal, interruptible, write_text
from cpt_residual.core.disk import format_bytes, require_writable, writing
from cpt_residual.errors import ConfigError
from cpt_residual.launch.visible import visible_lines

if TYPE_CHECKING:
    from cpt_residual.weights.analysis.inspection import Inspection

_AGAIN = "run the same command again"


def inspect(
    path: Annotated[Path, typer.Argument(help="a residual, a model, a merged model, an adapter")],
    *,
    as_json: Json = False,
) -> None:
    """Say what a directory is, from headers and records alone."""
    from cpt_residual.weights.analysis.inspection import inspect as look_at

    found = look_at(path)
    Terminal(as_json=as_json).result(found, lambda: _inspection_rows(found))


def verify(
    path: Annotated[
        Path | None, typer.Argument(help="a residual, or a model to read back and load")
    ] = None,
    run: Annotated[
        Path | None, typer.Option(help="instead: every artifact of a run below outputs/runs")
    ] = None,
    base: MaybeBase = None,
    instruct: MaybeInstruct = None,
    threads: Threads = None,
    *,
    as_json: Json = False,
) -> None:
    """Read weights or a run's artifacts back and compare them with what was recorded."""
    if (path is None) == (run is None):
        raise ConfigError(
            "It is not clear what to verify",
            problems=[f"PATH: {path or 'not given'}", f"--run: {run or 'not given'}"],
            remedy="Give either the directory of a residual or model, or --run with a run folder.",
        )
    if run is not None:
        raise typer.Exit(verify_run(run))
    assert path is not None, "one of the two is given"
    _verify_path(path, (base, instruct), num_threads(threads), Terminal(as_json=as_json))


def geometry(  # noqa: PLR0913 - a verb's options
    base: Base,
    instruct: Instruct,
    base_cpt: Annotated[str, typer.Option(help=f"base after CPT: {MODEL}")],
    out: Annotated[Path, typer.Option(help="a directory for geometry.json and its heat maps")],
    instruct_cpt: Annotated[str | None, typer.Option(help=f"instruct after CPT: {MODEL}")] = None,
    threads: Threads = None,
    *,
    as_json: Json = False,
) -> None:
    """Measure how far CPT and instruction tuning went, and whether against each other."""
    from cpt_residual import api
    from cpt_residual.core.files import write_json_atomic
    from cpt_residual.report.geometry_table import geometry_table
    from cpt_residual.report.heatmaps import draw_heatmaps
    from cpt_residual.weights.io.reader import Streaming

    terminal = Terminal(as_json=as_json)
    written = out / "geometry.json"
    require_writable(written)
    pair = api.Pair(
        pinned_reference(base, "base", terminal), pinned_reference(instruct, "instruct", terminal)
    )
    start = pinned_reference(base_cpt, "base_cpt", terminal)
    last = instruct_cpt and pinned_reference(instruct_cpt, "instruct_cpt", terminal)
    with interruptible(_AGAIN), terminal.progress("geometry", out.name) as report:
        streaming = Streaming(progress=report, threads=num_threads(threads))
        found = api.geometry(pair, start, instruct_cpt=last or None, streaming=streaming)
        with writing(out):
            write_json_atomic(written, found)
            draw_heatmaps(found, out)
    terminal.table(found, lambda: geometry_table(found))


def card(
    model: Annotated[Path, typer.Argument(help="a model that apply has made")],
    out: Annotated[Path | None, typer.Option(help="a file; without it the card is printed")] = None,
) -> None:
    """Print the model card of a merged model, made from its merge.json."""
    from cpt_residual.weights.merge.card import card_markdown
    from cpt_residual.weights.merge.merge_record import read_merge_record

    text = card_markdown(read_merge_record(model))
    if out is None:
        print(visible_lines(text) if sys.stdout.isatty() else text, end="")
        return
    write_text(out, text)


def _verify_path(
    path: Path, pair: tuple[str | None, str | None], threads: int, terminal: Terminal
) -> None:
    from cpt_residual import api
    from cpt_residual.weights.io.reader import Streaming
    from cpt_residual.weights.residual.residual_format import MANIFEST_FILE

    is_residual = (path / MANIFEST_FILE).is_file()
    if not is_residual and pair != (None, None):
        raise ConfigError(
            f"{path} is not a residual",
            problems=["--base and --instruct are what a residual is compared with"],
            remedy="Leave them out, or give the residual's directory.",
        )
    models = [
        reference and pinned_reference(reference, role, terminal)
        for reference, role in zip(pair, ("base", "instruct"), strict=True)
    ]
    with interruptible(_AGAIN), terminal.progress("verify", path.name) as report:
        streaming = Streaming(progress=report, threads=threads)
        if is_residual:
            found = api.verify_residual(
                path, base=models[0] or None, instruct=models[1] or None, streaming=streaming
            )
        else:
            found = api.verify_model(path, streaming=streaming)
    terminal.result(found, lambda: {f"{n}.": check for n, check in enumerate(found.checks, 1)})


def _inspection_rows(found: Inspection) -> dict[str, str]:
    dtypes = ", ".join(f"{dtype} ({number})" for dtype, number in found.dtypes.items())
    rows = {
        "what": f"{found.kind} ({found.architecture})",
        "path": found.path,
        "parameters": f"{found.num_parameters:,}",
        "tensors by dtype": dtypes,
        "shards": f"{len(found.shards)}, {format_bytes(found.num_bytes)}",
        "tied": ", ".join(f"{alias} is {owner}" for alias, owner in found.tied.items())
        or "nothing",
        "ends at": ", ".join(map(str, found.eos_token_ids)) or "no id named",
        "headers": found.headers[:12],
    }
    return rows | {name.replace("_", " "): _text(value) for name, value in found.facts.items()}


def _text(value: JsonValue) -> str:
    """A plain value for people: hashes by their first 12 digits, what is empty left out."""
    if isinstance(value, dict):
        parts = [(name, _text(item)) for name, item in value.items()]
        return ", ".join(f"{name.replace('_', ' ')} {text}" for name, text in parts if text)
    if isinstance(value, list):
        return "; ".join(_text(item) for item in value)
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = "" if value is None else str(value)
    return text[:12] if len(text) == 64 and set(text) <= set("0123456789abcdef") else text

"""The `export` command: to the `residuals` package or a mergekit configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from cpt_residual.cli.options import (
    MODEL,
    Json,
    MaybeBase,
    MaybeInstruct,
    Threads,
    num_threads,
    pinned_reference,
    with_recipe,
)
from cpt_residual.cli.terminal import Terminal, interruptible, write_text
from cpt_residual.config.merging import MergeRecipe
from cpt_residual.errors import ConfigError

_DTYPES: dict[str, Literal["F32", "BF16", "F16"]] = {"fp32": "F32", "bf16": "BF16", "fp16": "F16"}


@with_recipe
def export(  # noqa: PLR0913 - a verb's options
    *,
    to: Annotated[
        Literal["residuals", "mergekit"],
        typer.Option(help="residuals: a folder of that package; mergekit: the YAML of a merge"),
    ],
    out: Annotated[Path, typer.Option(help="a new directory (residuals) or file (mergekit)")],
    residual: Annotated[Path | None, typer.Option(help="residuals: the residual")] = None,
    dtype: Annotated[
        Literal["fp32", "bf16", "fp16"], typer.Option(help="residuals: what is stored")
    ] = "fp32",
    target: Annotated[str | None, typer.Option(help=f"mergekit: the target, {MODEL}")] = None,
    base: MaybeBase = None,
    instruct: MaybeInstruct = None,
    alpha: Annotated[float, typer.Option(help="mergekit: how much of the residual")] = 1.0,
    recipe: MergeRecipe,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Write a residual for the `residuals` package, or a merge as a mergekit configuration."""
    terminal = Terminal(as_json=as_json)
    if to == "residuals":
        _require("residuals", {"--residual": residual})
        assert residual is not None, "just required"
        _residuals(residual, out, dtype, num_threads(threads), terminal)
        return
    _require("mergekit", {"--target": target, "--base": base, "--instruct": instruct})
    from cpt_residual.weights.interop.mergekit_yaml import mergekit_yaml
    from cpt_residual.weights.io.model_ref import open_named

    models = {
        role: open_named(pinned_reference(str(given), role, terminal), role=role).checkpoint
        for role, given in (("target", target), ("base", base), ("instruct", instruct))
    }
    text = mergekit_yaml(
        base=models["base"],
        instruct=models["instruct"],
        target=models["target"],
        alpha=alpha,
        recipe=recipe,
    )
    write_text(out, text)
    terminal.result({"out": str(out)}, lambda: {"written": str(out)})


def _residuals(residual: Path, out: Path, dtype: str, threads: int, terminal: Terminal) -> None:
    from cpt_residual.weights.apply.job import plain_disk_words
    from cpt_residual.weights.interop.residuals_folder import write_residuals_folder
    from cpt_residual.weights.io.reader import Streaming
    from cpt_residual.weights.merge.merge_record import read_origin
    from cpt_residual.weights.residual.residual_format import open_residual

    artifact, origin = open_residual(residual), read_origin(residual)
    names = (origin.base.name, origin.instruct.name) if origin else (None, None)
    with (
        interruptible("no output was made; run the same command again"),
        plain_disk_words(out),
        terminal.progress("export", out.name) as report,
    ):
        lost = write_residuals_folder(
            artifact,
            out,
            dtype=_DTYPES[dtype],
            names=names,
            streaming=Streaming(progress=report, threads=threads),
        )
    exact = artifact.manifest.bit_exact and lost == 0.0
    terminal.result(
        {"out": str(out), "bit_exact": exact, "relative_error": lost},
        lambda: {
            "written": str(out),
            "bit exact": "yes" if exact else "no",
            "storage error": f"{lost:.3g} (relative norm)",
        },
    )


def _require(kind: str, options: dict[str, object]) -> None:
    missing = [name for name, value in options.items() if value is None]
    if missing:
        raise ConfigError(
            f"--to {kind} needs {', '.join(missing)}",
            remedy="Nothing was done. `cpt-residual export --help` says what each takes.",
        )

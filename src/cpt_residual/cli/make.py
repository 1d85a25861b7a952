"""The commands that write weights: compute and apply."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cpt_residual.cli.options import (
    MODEL,
    Base,
    DryRun,
    Explained,
    Instruct,
    Json,
    MaybeBase,
    MaybeInstruct,
    Policy,
    Rank,
    StorageName,
    Threads,
    num_threads,
    pinned_reference,
    storage_of,
    with_recipe,
)
from cpt_residual.cli.terminal import Terminal, interruptible
from cpt_residual.config.merging import MergeRecipe
from cpt_residual.core.disk import format_bytes
from cpt_residual.errors import ConfigError
from cpt_residual.launch import hub
from cpt_residual.launch.console import duration

if TYPE_CHECKING:
    from cpt_residual import api
    from cpt_residual.weights.residual.residual_format import ResidualManifest

_RESUMES = "run the same command again to resume"
_RESTARTS = "no output was made; run the same command again"


def compute(  # noqa: PLR0913 - a verb's options
    *,
    base: Base,
    instruct: Instruct,
    out: Annotated[Path, typer.Option(help="the residual's directory, which must not exist")],
    storage: Annotated[
        StorageName, typer.Option(help="fp32 gives instruct back bit for bit")
    ] = "fp32",
    rank: Rank = None,
    explained_variance: Explained = None,
    vocab_policy: Policy = "equal",
    threads: Threads = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Write theta_instruct - theta_base, proven tensor by tensor while it is written."""
    from cpt_residual import api
    from cpt_residual.weights.io.reader import Streaming

    terminal = Terminal(as_json=as_json)
    how = storage_of(storage, rank, explained_variance)
    left = pinned_reference(base, "base", terminal)
    right = pinned_reference(instruct, "instruct", terminal)
    with interruptible(_RESTARTS):
        if dry_run:
            streaming = Streaming(threads=num_threads(threads))
            plan = api.plan_compute(
                left, right, out, storage=how, vocab_policy=vocab_policy, streaming=streaming
            )
            terminal.result(plan, lambda: _plan_rows(plan))
            return
        with terminal.progress("compute", out.name) as report:
            streaming = Streaming(progress=report, threads=num_threads(threads))
            manifest = api.compute(
                left, right, out, storage=how, vocab_policy=vocab_policy, streaming=streaming
            )
    document = manifest.model_dump(mode="json", exclude={"tensors"})
    terminal.result(
        {**document, "out": str(out), "num_tensors": len(manifest.tensors)},
        lambda: _residual_rows(manifest, out),
    )


def _residual_rows(manifest: ResidualManifest, out: Path) -> dict[str, str]:
    return {
        "residual": str(out),
        "parameters": f"{manifest.num_parameters:,}",
        "norms": f"base {manifest.base_norm:.6g}, instruct {manifest.instruct_norm:.6g}, "
        f"residual {manifest.residual_norm:.6g}",
        "proof": "base + residual is instruct bit for bit, in every tensor"
        if manifest.bit_exact
        else f"base + residual misses instruct in {manifest.num_wrong:,} elements and "
        f"{manifest.num_zero_signs:,} signs of zero: this storage is not exact",
        "storage error": f"{manifest.relative_error:.3g} (relative norm)",
        "left out": _left_out(manifest.left_out),
    }


@with_recipe
def apply(  # noqa: PLR0913 - a verb's options
    *,
    target: Annotated[
        str, typer.Option(help=f"what gets the residual: {MODEL}, or a LoRA adapter's directory")
    ],
    out: Annotated[Path, typer.Option(help="the merged model's directory, which must not exist")],
    residual: Annotated[Path | None, typer.Option(help="a residual's directory")] = None,
    base: MaybeBase = None,
    instruct: MaybeInstruct = None,
    alpha: Annotated[
        list[float] | None,
        typer.Option(help="how much of the residual; 1.0 (default) is the paper; repeatable"),
    ] = None,
    target_base: Annotated[
        str | None,
        typer.Option(help="the base that CPT started from, where the recipe needs it [--base]"),
    ] = None,
    recipe: MergeRecipe,
    threads: Threads = None,
    push: Annotated[
        str | None, typer.Option(metavar="ORG/NAME", help="then upload it to the hub (private)")
    ] = None,
    verify: Annotated[
        bool,
        typer.Option(
            help="read the output back; show that it loads and stops; record the sha256 of outputs "
            "and inputs in merge.json (without: sizes, and the inputs' headers alone)"
        ),
    ] = True,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Write theta_target + alpha * residual as a model that loads, chats and stops."""
    terminal = Terminal(as_json=as_json)
    alphas = alpha or [1.0]
    place = out if out.name not in ("", "..") else out.resolve()  # publishing replaces `.`
    _require_pushable(push, alphas, dry_run=dry_run)
    from cpt_residual import api
    from cpt_residual.weights.io.reader import Streaming

    api.output_folders(out, alphas)
    source = _source_of(residual, base, instruct, terminal)
    model = pinned_reference(target, "target", terminal)
    start = pinned_reference(target_base, "target_base", terminal) if target_base else None
    options = api.ApplyOptions(start, verify, Streaming(threads=num_threads(threads)))
    with interruptible(_RESUMES):
        if dry_run:
            plan = api.plan_apply(
                model, source, out, alphas=alphas, recipe=recipe, options=options
            ).model_copy(update={"upload": push})
            terminal.result(plan, lambda: _plan_rows(plan))
            return
        with terminal.progress("apply", place.name) as progress:
            options = replace(options, streaming=replace(options.streaming, progress=progress))
            _warn_of_ancestry(source, options, terminal)
            reports = api.apply(model, source, out, alphas=alphas, recipe=recipe, options=options)
        pushed = hub.upload(place, push) if push else None
    outputs = [each.model_dump(mode="json") for each in reports]
    document = {"outputs": outputs, "verified": verify, "pushed": pushed}
    terminal.result(document, lambda: _report_rows(reports, verify=verify, pushed=pushed))


def _warn_of_ancestry(
    source: Path | api.Pair, options: api.ApplyOptions, terminal: Terminal
) -> None:
    """Of a base that CPT cannot have started from."""
    from cpt_residual import api

    start, streaming = options.target_base, options.streaming
    if start and isinstance(source, api.Pair) and source.base != start:
        for line in api.ancestry_warnings(source.base, start, streaming=streaming):
            terminal.warn(line)


def _require_pushable(push: str | None, alphas: Sequence[float], *, dry_run: bool) -> None:
    if push is None:
        return
    if len(alphas) > 1:
        raise ConfigError(
            f"--push {push}: there are {len(alphas)} alphas, and one repository",
            problems=[f"--alpha {alpha}" for alpha in alphas],
            remedy="Nothing was done. Push one alpha at a time.",
        )
    hub.require_hub_id(push)
    if not dry_run:
        hub.require_token(push)


def _source_of(
    residual: Path | None, base: str | None, instruct: str | None, terminal: Terminal
) -> Path | api.Pair:
    from cpt_residual import api

    pair = (base, instruct)
    if residual is not None and pair == (None, None):
        return residual
    if residual is None and base is not None and instruct is not None:
        return api.Pair(
            pinned_reference(base, "base", terminal),
            pinned_reference(instruct, "instruct", terminal),
        )
    given = {"--residual": residual, "--base": base, "--instruct": instruct}
    raise ConfigError(
        "It is not clear what to add to the target",
        problems=[f"{name}: {value or 'not given'}" for name, value in given.items()],
        remedy="Nothing was done. Give either --residual, or both --base and --instruct. (The base "
        "that CPT started from, which some recipes need, is --target-base.)",
    )


def _plan_rows(plan: api.WorkPlan) -> dict[str, str]:
    rows = {
        "would write": ", ".join(plan.outputs),
        "bytes to read": f"{format_bytes(plan.read_bytes)} ({plan.read_bytes:,})",
        "bytes to write": f"{format_bytes(plan.write_bytes)} ({plan.write_bytes:,})",
        "free on the disk": format_bytes(plan.free_bytes),
        "peak memory": f"about {format_bytes(plan.memory_bytes)}",
    }
    if plan.verify_bytes:
        rows["memory to verify"] = f"about {format_bytes(plan.verify_bytes)} (loads the output)"
    rate = format_bytes(plan.bytes_per_second)
    rows["time"] = f"about {duration(plan.seconds)} (at {rate} read and written a second, assumed)"
    rows["checks passed"] = ", ".join(plan.checks)
    if plan.upload:
        rows["would upload"] = f"{plan.outputs[0]} to {plan.upload} (private if it is new)"
    return rows | {"written": "nothing (dry run)"}


def _report_rows(
    reports: Sequence[api.MergeReport], *, verify: bool, pushed: str | None
) -> dict[str, str]:
    rows: dict[str, str] = {}
    for report in reports:
        relative = "" if report.relative_norm is None else f" ({report.relative_norm:.3g} relative)"
        rows[f"alpha {report.alpha}"] = str(report.folder)
        rows[f"  added at {report.alpha}"] = (
            f"norm {report.residual_norm:.6g}{relative}, {100 * report.lost_share:.2f} % of the "
            "updates lost to rounding"
        )
        if report.lost_share == 1.0:
            rows[f"  warning at {report.alpha}"] = "nothing changed: the updates round to zero"
        elif report.relative_norm is None or report.relative_norm > 1.0:
            rows[f"  warning at {report.alpha}"] = "more was added than the target holds"
    first = reports[0]
    rows["parameters"] = f"{first.num_parameters:,}"
    rows["ends at"] = ", ".join(map(str, first.eos_token_ids)) + (
        " (shown)" if verify else " (not shown: --no-verify)"
    )
    rows["left out"] = _left_out(first.left_out)
    return rows | ({"pushed": pushed} if pushed else {})


def _left_out(names: Sequence[str]) -> str:
    return f"{', '.join(names)} (of the instruct model)" if names else ""

"""report.md: question, verdict, tables, figures, method."""

from __future__ import annotations

from collections.abc import Iterable

from cpt_residual.report.facts import Geometry, ReportFacts
from cpt_residual.report.figures import FigureNote
from cpt_residual.report.format import MINUS, MISSING, cell, flops_text, percent, ratio_text
from cpt_residual.report.goals import Goal
from cpt_residual.report.markdown_table import markdown_table
from cpt_residual.report.measures import Scores
from cpt_residual.report.tables import (
    change_markdown,
    comparison_markdown,
    comparison_measures,
    cost_markdown,
    goals_markdown,
    other_tasks_markdown,
    paired_markdown,
    restoring_cost,
    training_markdown,
)
from cpt_residual.report.verdict import KEPT_LOSS, MOSTLY_KEPT_LOSS, Verdict


def report_markdown(
    facts: ReportFacts,
    scores: Scores,
    verdict: Verdict,
    goals: Iterable[Goal],
    notes: Iterable[FigureNote],
) -> str:
    """The whole report as Markdown; figures are embedded from `figures/`."""
    figures = {note.name: note for note in notes}
    parts = [
        f"# {facts.experiment}, seed {facts.seed}",
        f"**Question.** {facts.question}",
        f"**Verdict.** {verdict.headline}",
        "\n".join(f"* {paragraph}" for paragraph in verdict.paragraphs),
        *_warnings(facts),
        *_goals(goals),
        *_comparison(facts, scores, figures),
        *_changes(facts, scores),
        *_paired(facts),
        *_section("Alpha", _figures(figures, "alpha")),
        *_cost(facts, scores, figures),
        *_training(facts, figures),
        *_geometry(facts, figures),
        *_method(facts),
        *_skipped(figures),
    ]
    return "\n\n".join(parts) + "\n"


def _section(title: str, body: Iterable[str]) -> list[str]:
    kept = [part for part in body if part]
    return [f"## {title}", *kept] if kept else []


def _figures(figures: dict[str, FigureNote], *names: str) -> list[str]:
    return [
        f"![{figures[name].caption}](figures/{name}.png)"
        for name in names
        if name in figures and figures[name].skipped is None
    ]


def _warnings(facts: ReportFacts) -> list[str]:
    return [f"> **Note.** {note}" for note in facts.notes]


def _goals(goals: Iterable[Goal]) -> list[str]:
    judged = tuple(goals)
    return _section("Goals", [goals_markdown(judged)] if judged else [])


def _comparison(facts: ReportFacts, scores: Scores, figures: dict[str, FigureNote]) -> list[str]:
    body: list[str] = []
    if comparison_measures(scores):
        body.append(comparison_markdown(facts, scores))
    if "closed" in scores.sources:
        body.append(
            "IF: instructions followed, prompt level. Strict and loose require the turn to be "
            "closed by its end token; open does not. Bits per byte: lower is better. "
            "Standard errors are in `results.csv`."
        )
    elif "strict" in scores.sources:
        body.append(
            f"IF: instructions followed, prompt level, by the stock task "
            f"`{scores.sources['strict'][0]}`. It looks at the text alone: these numbers do not "
            "require the turn to be closed, and a response cut at its token limit counts like any "
            "other. Standard errors are in `results.csv`."
        )
    chance = scores.cloze_chance()
    if chance is not None:
        body.append(
            "cloze: share of rare spans of the new training text (names, numbers, dates that the "
            "reference texts do not hold) that the model finds likelier, after the text before "
            f"them, than look-alikes from other documents. A guess gets {percent(chance)}."
        )
    body += _figures(figures, "comparison", "tradeoff", "per_type")
    other = other_tasks_markdown(facts, scores)
    if other is not None:
        body += ["Other tasks (plain units, as the harness gives them):", other]
    return _section("Comparison", body)


def _changes(facts: ReportFacts, scores: Scores) -> list[str]:
    table = change_markdown(facts, scores)
    if table is None:
        return []
    legend = (
        f"recovery = (merged {MINUS} base_cpt) / (instruct {MINUS} base_cpt), given where "
        f"instruct is above base_cpt. forgetting = instruct {MINUS} x in points; a negative number "
        "is a gain."
    )
    return _section("Recovery and forgetting", [table, legend])


def _paired(facts: ReportFacts) -> list[str]:
    if not facts.differences:
        return []
    legend = (
        "Difference of the two variants on the same prompts, in points, with a 95 % interval over "
        "prompts (Newcombe's paired score interval) and McNemar's exact two-sided test. "
        "The verdict calls one variant better only where both agree, and instruction following "
        f"kept when the interval of the loss ends within {100 * KEPT_LOSS:g} % of instruct's own "
        f"score, mostly kept within {100 * MOSTLY_KEPT_LOSS:g} %. "
        "No correction for the number of tests."
    )
    return _section("Paired tests", [paired_markdown(facts.differences), legend])


def _cost(facts: ReportFacts, scores: Scores, figures: dict[str, FigureNote]) -> list[str]:
    if not any(variant.route for variant in facts.variants):
        return []
    body = [
        cost_markdown(facts, scores),
        (
            "FLOPs beyond the released pair. Those of a training are counted by torch's "
            "FlopCounterMode on one forward and backward pass of a replica on the meta device "
            "over the rows of one step, and scaled to all rows; attention counts in full (masked "
            "or not), a second forward pass of gradient checkpointing, the optimizer and "
            "element-wise operations do not. Residual and apply are counted as one and two "
            "operations per parameter."
        ),
    ]
    restoring = restoring_cost(facts)
    if restoring is not None:
        cheap, dear, name = restoring
        body.append(
            f"Bringing instruction following back onto the trained base: {flops_text(cheap)} FLOPs "
            f"for residual and apply, {flops_text(dear)} for instruction tuning ({name}), "
            f"{ratio_text(dear / cheap)} as much. The instruction tuning of the released pair "
            "itself is not counted on either side."
        )
    return _section("Cost", [*body, *_figures(figures, "cost")])


def _training(facts: ReportFacts, figures: dict[str, FigureNote]) -> list[str]:
    if not facts.trainings:
        return []
    legend = (
        "lost to rounding: of the weights that training moved, the share that rounding to the "
        f"stored dtype put back where they were; {MISSING} for fp32 outputs, which are not rounded."
    )
    return _section("Training", [training_markdown(facts), legend, *_figures(figures, "training")])


def _geometry(facts: ReportFacts, figures: dict[str, FigureNote]) -> list[str]:
    if facts.geometry is None:
        return []
    legend = (
        "drift: norm of the update that CPT made, relative to the norm of the weights before it. "
        "Cosines are between the residual and such updates, all weights taken as one vector."
    )
    body = [
        _geometry_table(facts.geometry),
        legend,
        *_figures(figures, "geometry", "geometry_heatmaps"),
    ]
    return _section("Geometry", body)


def _geometry_table(geometry: Geometry) -> str:
    rows = [
        [f"drift of {name}", cell(value, share=False)] for name, value in geometry.drift.items()
    ]
    rows += [
        [f"cosine of {name}", cell(value, share=False)] for name, value in geometry.cosine.items()
    ]
    for name, value in geometry.other.items():
        share = name.startswith(("sign conflict", "CPT updates lost"))
        rows.append([name, percent(value) if share else cell(value, share=False)])
    return markdown_table(["whole model", "value"], rows)


def _method(facts: ReportFacts) -> list[str]:
    body: list[str] = []
    if facts.provenance:
        body.append("\n".join(f"* {what}: {value}" for what, value in facts.provenance))
    if facts.lineage:
        body += [f"Lineage of {facts.roles.merged}:", f"```\n{facts.lineage}\n```"]
    return _section("Method", body)


def _skipped(figures: dict[str, FigureNote]) -> list[str]:
    missing = [f"* {note.name}: {note.skipped}" for note in figures.values() if note.skipped]
    return _section("Figures left out", ["\n".join(missing)] if missing else [])

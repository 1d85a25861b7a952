"""report.md: question, verdict, tables, figures, method; the words are in `templates/`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from cpt_residual.report import tables
from cpt_residual.report.figures import FigureNote
from cpt_residual.report.format import flops_text, p_text, percent, points, ratio_text
from cpt_residual.results.document import Results

_TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, **values: object) -> str:
    """A Markdown template with `values`; an unknown name is an error, never an empty place."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 (Markdown, no HTML)
    )
    return environment.get_template(template).render(**values)


def report_markdown(results: Results, notes: Iterable[FigureNote]) -> str:
    """The whole report as Markdown; figures are embedded from `figures/`."""
    figures = {note.name: note for note in notes}
    restoring = tables.restoring_cost(results)
    if restoring is not None:
        cheap, dear, name = restoring
        restoring = (flops_text(cheap), flops_text(dear), name, ratio_text(dear / cheap))
    has_routes = any(variant.route for variant in results.variants)
    return render(
        "report.md.j2",
        r=results,
        figures=figures,
        skipped=[note for note in figures.values() if note.skipped],
        goals=tables.goals_markdown(results.goals),
        comparison=tables.comparison_markdown(results) if results.table.measures else "",
        legend=_legend(results),
        changes=tables.change_markdown(results),
        families=[
            (family, tables.contrasts_markdown(results, family)) for family in results.families
        ],
        alpha=p_text(results.families[0].alpha) if results.families else "",
        margin=points(results.margin),
        has_alpha="alpha" in figures and not figures["alpha"].skipped,
        cost=tables.cost_markdown(results) if has_routes else "",
        restoring=restoring,
        trainings=tables.training_markdown(results),
        geometry=tables.geometry_markdown(results),
    )


def _legend(results: Results) -> str:
    table = results.table
    following = table.measure("instruction_following")
    words: list[str] = []
    if table.beside(following, "open") is not None:
        words.append(
            "IF: instructions followed, prompt level. Strict and loose require the turn to be "
            "closed by its end token; open does not."
        )
    elif following is not None:
        words.append(
            f"IF: instructions followed, prompt level, by the stock task `{following.task}`. It "
            "looks at the text alone: these numbers do not require the turn to be closed, and a "
            "response cut at its token limit counts like any other."
        )
    words += [
        f"{measure.short}: {measure.label}; a guess gets {percent(measure.chance)}."
        for measure in table.columns()
        if measure.chance is not None
    ]
    if any(not measure.higher_is_better for measure in table.columns()):
        words.append("Bits per byte: lower is better.")
    return " ".join([*words, "Standard errors are in `results.csv`."])

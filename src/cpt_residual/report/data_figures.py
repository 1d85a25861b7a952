"""The figures of packs and corpora: what is drawn, where, and why one is left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from cpt_residual.data.inspection.corpus import CorpusInspection
from cpt_residual.data.inspection.pack import PackInspection
from cpt_residual.report.composition_figure import composition_figure
from cpt_residual.report.figures import FigureNote
from cpt_residual.report.filters_figures import contamination_figure, filters_figure
from cpt_residual.report.length_figure import LengthCurve, lengths_figure
from cpt_residual.report.style import Figure, write_png

_Planned = tuple[str, str, str, Callable[[], Figure | None]]


def draw_pack_figures(found: PackInspection, folder: Path) -> tuple[FigureNote, ...]:
    """Write `folder/NAME.png` for every figure that has data; same pack, same bytes."""
    curves = [LengthCurve(_printable(s.corpus), s.lengths) for s in found.sources if s.lengths]
    return _draw(
        folder,
        (
            (
                "lengths",
                "How long documents are, and where the tokens lie.",
                "the pack has no document",
                lambda: lengths_figure(curves, "tokens", row=found.sequence_length),
            ),
            (
                "composition",
                "Tokens of each source, and padding, along the rows.",
                "one source, and no padding before the last rows",
                lambda: composition_figure(found.composition, found.num_rows),
            ),
            (
                "contamination",
                "Questions of the evaluation that were found in the corpora of the pack.",
                "no contamination check is known of its corpora",
                lambda: contamination_figure([p for c in found.corpora for p in c.filters]),
            ),
        ),
    )


def draw_corpus_figures(found: CorpusInspection, folder: Path) -> tuple[FigureNote, ...]:
    """Write `folder/NAME.png` for every figure that has data; same corpus, same bytes."""
    curves = [
        LengthCurve(_printable(file.name.removesuffix(".jsonl")), file.lengths)
        for file in found.files
        if file.lengths
    ]
    return _draw(
        folder,
        (
            (
                "lengths",
                "How long documents are, and where the characters lie.",
                "there is no document",
                lambda: lengths_figure(curves, "characters"),
            ),
            (
                "filters",
                "What every filter left of the documents.",
                "no filter ran over this corpus",
                lambda: filters_figure(found),
            ),
            (
                "contamination",
                "Questions of the evaluation that were found in the corpus.",
                "no contamination check ran over this corpus",
                lambda: contamination_figure(found.filters),
            ),
        ),
    )


def _draw(folder: Path, plan: Sequence[_Planned]) -> tuple[FigureNote, ...]:
    return tuple(
        FigureNote(name, caption, None if write_png(folder / f"{name}.png", draw) else reason)
        for name, caption, reason, draw in plan
    )


def _printable(name: str) -> str:
    """A name from a file, without what no font can draw."""
    return "".join(character if character.isprintable() else "?" for character in name)

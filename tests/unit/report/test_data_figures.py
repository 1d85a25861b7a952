"""Figures of packs and corpora: what is drawn where, and what is left out."""

from __future__ import annotations

import numpy as np
import pytest

from cpt_residual.data.filters.ledger import Drop, FilterLedger, TaskContamination
from cpt_residual.data.inspection.corpus import CorpusInspection
from cpt_residual.data.inspection.lengths import Lengths, LengthSummary
from cpt_residual.data.inspection.pack import Composition
from cpt_residual.report.composition_figure import composition_figure
from cpt_residual.report.filters_figures import contamination_figure, filters_figure
from cpt_residual.report.length_figure import LengthCurve, lengths_figure
from cpt_residual.report.style import SERIES, Figure, png_bytes


def summary(*lengths: int) -> LengthSummary:
    found = Lengths()
    found.add_all(np.array(lengths, dtype=np.int64))
    told = found.summary()
    assert told is not None
    return told


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def legend(figure: Figure) -> list[str]:
    (found,) = figure.legends
    return [text.get_text() for text in found.get_texts()]


def test_lengths_are_shares_of_documents_and_of_tokens() -> None:
    # ten documents of 16 tokens and one of 160: half of the tokens in one eleventh of the documents
    figure = lengths_figure([LengthCurve("mine", summary(*[16] * 10, 160))], "tokens", row=128)
    documents, tokens = figure.axes
    for axes, wanted in ((documents, (1000 / 11, 100 / 11)), (tokens, (50, 50))):
        values, edges, _ = axes.patches[0].get_data()
        widths = np.diff(np.log2(edges)) * 4
        shares = values * widths
        assert shares.sum() == pytest.approx(100)
        assert (shares[0], shares[-1]) == pytest.approx(wanted)
    assert legend(figure) == ["mine: 11 documents, median 16"]
    assert "a row" in texts(figure)
    assert lengths_figure([], "tokens") is None


def test_no_more_curves_than_colours() -> None:
    curves = [LengthCurve(f"source {n}", summary(10 + n)) for n in range(len(SERIES) + 3)]
    figure = lengths_figure(curves, "tokens")
    names = [label.split(":")[0] for label in legend(figure)]
    assert names == [f"source {n}" for n in range(3, len(SERIES) + 3)]


def test_the_composition_fills_every_position() -> None:
    found = Composition(
        sources=("new", "general"), tokens=((6, 2), (0, 8), (4, 2)), padding=(0, 0, 2)
    )
    figure = composition_figure(found, num_rows=6)
    (axes,) = figure.axes
    new, general, padding = (patch.get_data() for patch in axes.patches)
    np.testing.assert_allclose(new.values, [75, 0, 50])
    np.testing.assert_allclose(general.values, [100, 100, 75])
    np.testing.assert_allclose(general.baseline, new.values)
    np.testing.assert_allclose(padding.values, [100, 100, 100])
    np.testing.assert_allclose(new.edges, [0, 2, 4, 6])
    assert legend(figure)[0] == "new: 10 (41.7 %)"
    alone = Composition(sources=("new",), tokens=((6,), (4,)), padding=(0, 2))
    assert composition_figure(alone, num_rows=2) is None


def filters(*, documents: int = 90) -> FilterLedger:
    return FilterLedger(
        name="near_dedup",
        documents_in=100,
        documents_out=documents,
        characters_in=1000,
        characters_out=700,
        characters_added=0,
        dropped=(
            Drop(reason="near_copy", documents=100 - documents, characters=300),
            Drop(reason="never", documents=0, characters=0),
        ),
        counts={},
        facts={},
        tasks=(
            TaskContamination(
                task="facts",
                questions=10,
                questions_checked=8,
                questions_too_short=2,
                questions_of_shared_wording=0,
                questions_found=2,
                documents=5,
                ngrams=80,
                ngrams_shared=0,
            ),
        ),
    )


def corpus(*given: FilterLedger) -> CorpusInspection:
    ledger = {"heldout_documents": 20, "heldout_characters": 100, "heldout_copies_dropped": 0}
    return CorpusInspection(
        kind="corpus",
        path="c",
        node=None,
        fingerprint=None,
        ledger=ledger,
        files=(),
        filters=given,
        checks=(),
    )


def test_the_waterfall_goes_from_what_was_read_to_what_is_trained_on() -> None:
    figure = filters_figure(corpus(filters()))
    documents, characters = figure.axes
    names = [label.get_text() for label in documents.get_yticklabels()]
    assert names == ["read", "near dedup: near copy", "held out", "trained on"]
    spans = [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in documents.patches]
    assert spans == [(0, 100), (90, 100), (70, 90), (0, 70)]
    spans = [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in characters.patches]
    assert spans == [(0, 1000), (700, 1000), (600, 700), (0, 600)]
    assert "\N{MINUS SIGN}10 (10.0 %)" in texts(figure)
    assert filters_figure(corpus()) is None


def test_contamination_is_a_share_of_the_questions_that_were_looked_for() -> None:
    figure = contamination_figure([filters()])
    (axes,) = figure.axes
    assert [bar.get_width() for bar in axes.patches] == [25]
    assert texts(figure) == ["questions: 2 of 8, documents: 5"]
    assert contamination_figure([]) is None


def test_the_same_values_give_the_same_bytes() -> None:
    curves = [LengthCurve("mine", summary(3, 50, 700))]
    for draw in (
        lambda: lengths_figure(curves, "characters"),
        lambda: filters_figure(corpus(filters())),
        lambda: contamination_figure([filters()]),
    ):
        first = png_bytes(draw)
        assert first is not None
        assert first == png_bytes(draw)

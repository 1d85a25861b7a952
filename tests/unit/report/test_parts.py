"""Small parts: numbers as text, running means, geometry and provenance."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpt_residual.config.schema import Roles
from cpt_residual.report.format import cell, flops_text, p_text, percent, points, ratio_text
from cpt_residual.report.geometry import core_geometry
from cpt_residual.report.provenance import environment_lines
from cpt_residual.report.style import spread
from cpt_residual.report.work_figures import TracePoint, running_mean
from cpt_residual.weights.analysis.geometry import GeometryReport
from support.geometry_rows import row


def test_numbers_as_text() -> None:
    assert percent(0.8423) == "84.2 %"
    assert percent(None) == "\N{EN DASH}"
    assert points(-0.065, signed=True) == "\N{MINUS SIGN}6.5"
    assert points(0.065, signed=True) == "+6.5"
    assert points(-0.0001) == "0.0"
    assert cell(0.3261, share=False) == "0.326"
    assert flops_text(2.1e12) == "2.10e12"
    assert flops_text(0) == "0"
    assert ratio_text(1.254) == "1.25 times"
    assert ratio_text(1954.0) == "1 954 times"
    assert ratio_text(1_306_818.0) == "1.31e6 times"
    assert p_text(0.00001) == "< 0.0001"


@given(st.lists(st.floats(0, 100), min_size=1, max_size=6))
def test_spread_labels_keep_their_distance_and_order(positions: list[float]) -> None:
    placed = spread(positions, gap=5.0)
    ordered = sorted(placed)
    assert all(b - a > 4.9 for a, b in pairwise(ordered))
    by_wish = [placed[i] for i in sorted(range(len(positions)), key=lambda i: positions[i])]
    assert by_wish == ordered


def test_running_mean_of_a_line_is_the_line_inside() -> None:
    trace = tuple(TracePoint(i, float(i)) for i in range(100))
    smooth = running_mean(trace)
    assert smooth[:97] == pytest.approx([float(i) for i in range(97)])
    assert running_mean(trace[:3]) == [0.0, 1.0, 2.0]


def test_geometry_in_words_leaves_out_what_was_not_measured() -> None:
    total = row(drift=0.25, cosine=-0.1, base_norm=2.0, residual_norm=1.0, cosine_instruct=None)
    document = GeometryReport(total=total, modules={}, layers={}, tensors=[], cells=[])
    geometry = core_geometry(document, Roles())
    assert geometry.drift["base_cpt"] == 0.25
    assert geometry.cosine["residual, base_cpt"] == -0.1
    assert "residual, instruct_cpt" not in geometry.cosine
    assert geometry.other["residual, norm relative to base"] == 0.5


def test_evaluations_that_differ_are_a_note() -> None:
    same = {"lm_eval": "0.4.13", "stop_tokens": ["<|end|>"], "tasks": {"a": {"version": 1}}}
    other = {**same, "lm_eval": "0.4.12"}
    lines, notes = environment_lines({"base": same, "instruct": other})
    assert notes == ("The evaluations differ in lm_eval: base: 0.4.13; instruct: 0.4.12.",)
    found = dict(lines)
    assert found["evaluation, task a"] == "version 1"


def test_hashes_are_shortened() -> None:
    lines, _ = environment_lines({"base": {"scorer": "ab" * 32}})
    assert dict(lines)["evaluation, scorer"] == "`abababababababab`"

"""Small parts: numbers as text, labels, running means, geometry and provenance at the door."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.text import Text

from cpt_residual.report.facts import TracePoint
from cpt_residual.report.format import cell, flops_text, p_text, percent, points, ratio_text
from cpt_residual.report.geometry import read_geometry
from cpt_residual.report.labels import PointLabel, label_points
from cpt_residual.report.provenance import environment_lines
from cpt_residual.report.style import house_style, new_figure, spread
from cpt_residual.report.work_figures import running_mean
from support.report_scenarios import ROLES


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


def test_crowded_labels_do_not_cover_each_other() -> None:
    with house_style():
        figure = new_figure(8.6, 5.6)
        axes = figure.add_subplot()
        axes.set_xlim(0, 100)
        axes.set_ylim(0, 100)
        label_points(axes, [PointLabel(5 + i, 5, f"some_variant_{i}", "k") for i in range(6)])
        renderer = figure.canvas.get_renderer()
        for note in axes.texts:
            note.update_positions(renderer)
        boxes = [Text.get_window_extent(note, renderer) for note in axes.texts]  # no leaders
    for i, one in enumerate(boxes):
        for other in boxes[:i]:
            assert not one.overlaps(other)


def test_running_mean_of_a_line_is_the_line_inside() -> None:
    trace = tuple(TracePoint(i, float(i)) for i in range(100))
    smooth = running_mean(trace)
    assert smooth[:97] == pytest.approx([float(i) for i in range(97)])
    assert running_mean(trace[:3]) == [0.0, 1.0, 2.0]


def geometry_row(**values: float | None) -> dict[str, float | int | None]:
    return {
        "num_parameters": 10,
        "base_norm": 2.0,
        "cpt_delta_norm": 0.5,
        "residual_norm": 1.0,
        "drift": 0.25,
        "cosine": -0.1,
        "sign_conflict": 0.5,
        "lost_to_bf16": 0.01,
        "instruct_norm": 2.0,
        "instruct_delta_norm": 0.4,
        "instruct_drift": 0.2,
        "cosine_deltas": 0.3,
        "cosine_instruct": None,
    } | values


def test_geometry_is_read_by_layer_and_module(tmp_path: Path) -> None:
    q_proj = "model.layers.1.self_attn.q_proj"
    attention = {"layer": 1, "module": "attention"}
    tensors = [
        {**geometry_row(), "name": f"{q_proj}.weight", **attention},
        {**geometry_row(cosine=None), "name": f"{q_proj}.bias", **attention},
        {**geometry_row(), "name": "model.norm.weight", "layer": None, "module": "norm"},
    ]
    document = {"total": geometry_row(), "modules": {}, "layers": {}, "tensors": tensors}
    path = tmp_path / "geometry.json"
    path.write_text(json.dumps(document))
    geometry = read_geometry(path, ROLES)
    assert geometry.drift == {"base_cpt": 0.25, "instruct_cpt": 0.2}
    assert geometry.cosine == {"residual, base_cpt": -0.1, "base_cpt, instruct_cpt": 0.3}
    assert geometry.other["residual, norm relative to base"] == 0.5
    assert [tensor.module for tensor in geometry.tensors] == ["q_proj", "q_proj.bias", "norm"]
    assert "cosine residual, base_cpt" not in geometry.tensors[1].values


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

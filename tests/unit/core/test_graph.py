from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pytest

from cpt_residual.core.graph import Graph
from cpt_residual.core.stage import Stage
from cpt_residual.errors import ConfigError
from support.stages import ActionStage, TextStage


def _diamond() -> TextStage:
    base = TextStage("base", "b")
    left = TextStage("cpt:base", "l", (("start", base),))
    right = TextStage("residual", "r", (("base", base), ("instruct", TextStage("instruct", "i"))))
    return TextStage("base_cpt_residual", "m", (("target", left), ("residual", right)))


def _names(nodes: tuple[object, ...]) -> list[str]:
    return [getattr(node, "stage").node for node in nodes]  # noqa: B009


def test_nodes_come_after_their_inputs_in_a_stable_order() -> None:
    graph = Graph.of([_diamond()])
    assert _names(graph.nodes) == ["base", "cpt:base", "instruct", "residual", "base_cpt_residual"]
    again = Graph.of([_diamond()])
    assert [n.fingerprint for n in again.nodes] == [n.fingerprint for n in graph.nodes]
    assert graph.fingerprint == again.fingerprint


def test_levels_inputs_and_ancestors() -> None:
    graph = Graph.of([_diamond()])
    assert {node.stage.node: node.level for node in graph.nodes} == {
        "base": 0,
        "instruct": 0,
        "cpt:base": 1,
        "residual": 1,
        "base_cpt_residual": 2,
    }
    inputs = graph.inputs_of("base_cpt_residual")
    assert {role: node.stage.node for role, node in inputs.items()} == {
        "target": "cpt:base",
        "residual": "residual",
    }
    assert _names(graph.ancestors("residual")) == ["base", "instruct"]
    assert _names(graph.ancestors(graph["base_cpt_residual"])) == [
        "base",
        "cpt:base",
        "instruct",
        "residual",
    ]
    assert graph.ancestors("base") == ()


def test_a_change_moves_every_descendant_and_nothing_else() -> None:
    before = Graph.of([_diamond()])
    base = TextStage("base", "b")
    left = TextStage("cpt:base", "CHANGED", (("start", base),))
    right = TextStage("residual", "r", (("base", base), ("instruct", TextStage("instruct", "i"))))
    after = Graph.of([TextStage("base_cpt_residual", "m", (("target", left), ("residual", right)))])
    moved = {n.stage.node for n in after.nodes if n.fingerprint != before[n.stage.node].fingerprint}
    assert moved == {"cpt:base", "base_cpt_residual"}
    assert before.fingerprint != after.fingerprint


def test_same_fingerprint_under_two_names_is_one_artifact() -> None:
    graph = Graph.of([TextStage("one"), TextStage("two"), TextStage("three", "other")])
    assert graph["one"].fingerprint == graph["two"].fingerprint
    assert _names(graph.nodes) == ["one", "two", "three"]
    assert _names(graph.distinct()) == ["one", "three"]


def test_equal_stages_made_twice_are_one_node() -> None:
    assert _names(Graph.of([TextStage("one"), TextStage("one")]).nodes) == ["one"]


def test_every_stage_object_is_asked_once() -> None:
    asked: list[str] = []

    @dataclass(frozen=True)
    class Counting(TextStage):
        def inputs(self) -> Mapping[str, Stage]:
            asked.append(self.node)
            return super().inputs()

    stage = Counting("0")
    for depth in range(1, 25):  # 2**25 paths
        stage = Counting(str(depth), sources=(("left", stage), ("right", stage)))
    Graph.of([stage])
    assert len(asked) == 25


def test_unknown_node_names_the_nearest() -> None:
    graph = Graph.of([_diamond()])
    assert "residual" in graph
    assert "residuals" not in graph
    with pytest.raises(
        ConfigError, match=r"no stage is called 'residuals'\. Did you mean 'residual'"
    ):
        graph.inputs_of("residuals")


def test_lineage_is_a_tree() -> None:
    plain = ActionStage("pack")
    base = TextStage("base", "b", (("pack", plain),))
    left = TextStage("cpt:base", "l", (("start", base), ("pack", plain)))
    right = TextStage("residual", "r", (("base", base),))
    graph = Graph.of([TextStage("merged", "m", (("target", left), ("residual", right)))])
    short = {node.stage.node: node.fingerprint[:8] for node in graph.nodes}
    assert graph.lineage("merged") == "\n".join(
        [
            f"merged ({short['merged']}) text=m",
            f"├─ cpt:base ({short['cpt:base']}) text=l",
            f"│  └─ base ({short['base']}) text=b",
            f"│     └─ pack ({short['pack']})",
            f"└─ residual ({short['residual']}) text=r",
            f"   └─ base ({short['base']}) text=b [see above]",
        ]
    )

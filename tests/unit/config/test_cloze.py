"""The `cloze` suite: defaults, and what is refused before anything runs."""

from __future__ import annotations

from typing import Any

import pytest

from cpt_residual.config.compose import compose
from cpt_residual.core.store import Store
from cpt_residual.stages.registry import build_graph
from cpt_residual.suites.cloze import ClozeSuite

LARGE = ["+experiment=llama3_500m", "suite=[ifeval,paper,heldout,cloze]"]


def with_suite(**fields: object) -> tuple[tuple[str, object], ...]:
    suite = {"kind": "cloze", "corpus": "new_domain", "references": ["general"]}
    given = {**suite, "num_questions": 10, **fields}
    return (("suites/cloze", given), ("evaluation/suites", ["world", "heldout", "cloze"]))


def test_chance() -> None:
    suite = ClozeSuite(kind="cloze", corpus="a", num_questions=1, num_distractors=4)
    assert suite.chance == 0.2
    assert suite.references == []
    assert suite.span_kinds == ["name", "number", "date"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"corpus": "newdomain"}, "suites.cloze.corpus: newdomain: not one of the corpora."),
        ({"references": ["genral"]}, "suites.cloze.references[0]: genral: not one of the corpora."),
        (
            {"references": ["general", "general"]},
            "suites.cloze.references: general: listed 2 times",
        ),
        (
            {"references": ["new_domain"]},
            "suites.cloze.references: new_domain: the corpus itself knows all that is asked",
        ),
        (
            {"corpus": "instructions"},
            "suites.cloze.corpus: instructions: holds dialogues; questions are asked about text",
        ),
        (
            {"references": [], "heldout_is_reference": False},
            "suites.cloze.references: empty: nothing tells new knowledge from old",
        ),
        ({"span_kinds": []}, "suites.cloze.span_kinds"),
        ({"context_characters": 31}, "suites.cloze.context_characters"),
        (
            {"min_span_documents": 3, "max_span_documents": 2},
            "suites.cloze.min_span_documents: 3: must not be above max_span_documents=2",
        ),
    ],
)
def test_refused(problems: Any, fields: dict[str, object], message: str) -> None:
    (found,) = problems(*with_suite(**fields))
    assert message in found


def test_one_probe_serves_every_variant(tmp_path: Any) -> None:
    asked = compose([*LARGE, "evaluation.suites=[heldout,cloze]"])
    graph = build_graph(asked, Store(tmp_path))
    nodes = {node.stage.node: node for node in graph.nodes}
    assert nodes["probe:cloze"].inputs == {
        "corpus:new_domain": "corpus:new_domain",
        "pack": nodes["cpt:base_cpt"].inputs["pack"],
    }
    scored = [node for name, node in nodes.items() if name.startswith("evaluate:")]
    assert len(scored) > 3
    assert all("probe:cloze" in node.inputs for node in scored)


def test_a_suite_that_is_not_scored_costs_nothing(tmp_path: Any) -> None:
    plain, more = (
        build_graph(compose(args), Store(tmp_path)).fingerprint for args in (LARGE[:1], LARGE)
    )
    assert plain == more

"""Every suite declares what its scores mean."""

from __future__ import annotations

import pytest

from cpt_residual.config.suite_tasks import HarnessTask
from cpt_residual.suites.harness import HarnessSuite
from cpt_residual.suites.harness.stock_tasks import STOCK_TASKS
from cpt_residual.suites.heldout import HeldoutSuite


def test_roles_of_held_out_text_are_stated_and_not_read_off_names() -> None:
    suite = HeldoutSuite(
        kind="heldout", corpora=["new_thing", "other"], max_documents=9, new_domain="other"
    )
    roles = {m.task: m.role for m in suite.measures("heldout")}
    assert roles == {"heldout_new_thing": "other", "heldout_other": "new_text"}


def test_a_stock_task_that_nobody_knows_takes_the_first_score_that_was_written() -> None:
    (measure,) = HarnessSuite(kind="harness", tasks=[HarnessTask(task="arc_new")]).measures("x")
    assert measure.role == "other"
    found = measure.among({"exact_match", "acc", "acc_stderr"})
    assert found is not None
    assert found.name == "arc_new/acc"
    assert measure.among({"bleu"}) is None
    with_chance = measure.model_copy(update={"chance": 0.25, "metric": "declared"})
    found = with_chance.among({"acc"})
    assert found is not None
    assert (found.chance, found.is_named({"arc_new/declared"})) == (None, True)


def test_what_the_configuration_states_comes_before_the_table() -> None:
    task = HarnessTask(task="gsm8k", metric="exact_match,flexible-extract", label="maths")
    (measure,) = HarnessSuite(kind="harness", tasks=[task]).measures("x")
    assert (measure.metric, measure.label, measure.role) == (
        "exact_match,flexible-extract",
        "maths",
        "reasoning",
    )
    assert measure.among({"exact_match"}) is None


@pytest.mark.parametrize(
    ("task", "metric", "unit"),
    [
        ("wikitext", "word_perplexity", "perplexity"),
        ("lambada_openai", "perplexity,none", "perplexity"),
        ("pile_arxiv", "bits_per_byte", "bits_per_byte"),
    ],
)
def test_a_perplexity_is_no_share_and_better_when_low(task: str, metric: str, unit: str) -> None:
    tasks = [HarnessTask(task=task, metric=metric)]
    (measure,) = HarnessSuite(kind="harness", tasks=tasks).measures("x")
    assert (measure.unit, measure.higher_is_better, measure.paired) == (unit, False, False)


@pytest.mark.parametrize("task", STOCK_TASKS)
def test_every_known_task_has_one_headline(task: str) -> None:
    measures = HarnessSuite(kind="harness", tasks=[HarnessTask(task=task)]).measures("x")
    assert [m.metric for m in measures if m.aspect == "headline"] == [STOCK_TASKS[task].metric]


def test_words_are_no_part_of_an_evaluations_recipe() -> None:
    plain = HeldoutSuite(kind="heldout", corpora=["a"], max_documents=9)
    assert plain.model_copy(update={"new_domain": "a"}).without_words() == plain
    stock = HarnessSuite(kind="harness", tasks=[HarnessTask(task="mmlu")])
    told = HarnessSuite(kind="harness", tasks=[HarnessTask(task="mmlu", label="x", role="other")])
    assert told.without_words() == stock

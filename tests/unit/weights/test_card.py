"""The model card: front matter the hub reads, a command that works, and nothing private."""

from __future__ import annotations

import shlex
from typing import Any

import pytest
import yaml

from cpt_residual.config.merging import MergeRecipe
from cpt_residual.methods.dare import Dare
from cpt_residual.methods.low_rank import LowRank
from cpt_residual.methods.ties import Ties
from cpt_residual.weights.merge.card import base_models, card_markdown, recipe_options
from cpt_residual.weights.merge.merge_record import InputRecord, MergeRecord, ShardRecord

COMMIT = "0123456789" * 4
RECORD = MergeRecord(
    name="merged",
    alpha=0.75,
    recipe=MergeRecipe(),
    inputs=[
        InputRecord(role="target", name="base_cpt", headers="a" * 64),
        InputRecord(role="base", name="org/base", revision=COMMIT, headers="b" * 64),
        InputRecord(role="instruct", name="org/instruct", revision=COMMIT, headers="c" * 64),
    ],
    num_parameters=1_234_567,
    target_norm=100.0,
    residual_norm=8.0,
    relative_norm=0.08,
    cosine=-0.0123,
    lost_share=0.25,
    eos_token_ids=[4, 1],
    stops_at=[4, 1],
    shards={"model.safetensors": ShardRecord(num_bytes=10, sha256="d" * 64)},
    code_version="0.1.0+abc",
    libraries={"torch": "2.13.0", "wandb": "0.31"},
)


def front_matter(card: str) -> Any:
    _, fields, _ = card.split("---\n", 2)
    return yaml.safe_load(fields)


def test_the_front_matter_names_the_lineage() -> None:
    assert front_matter(card_markdown(RECORD)) == {
        "base_model": ["base_cpt", "org/base", "org/instruct"],
        "base_model_relation": "merge",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": [
            "merge",
            "instruction-residual",
            "task-arithmetic",
            "continual-pretraining",
        ],
    }


def test_the_body_says_what_was_done() -> None:
    card = card_markdown(RECORD)
    assert "theta = theta_target + 0.75 * (theta_instruct - theta_base)" in card
    assert f"commit {COMMIT}" in card
    assert f"headers {'a' * 12}" in card
    assert "a" * 13 not in card
    assert "25.0 %" in card
    assert "4, 1" in card
    assert "1,234,567" in card
    assert "arxiv.org/abs/2410.10739" in card
    assert "torch 2.13.0" in card
    assert "generation was shown to stop" in card
    unchecked = card_markdown(RECORD.model_copy(update={"stops_at": None}))
    assert "was not checked" in unchecked
    assert card == card_markdown(MergeRecord.model_validate_json(RECORD.model_dump_json()))


def test_the_command_names_what_it_needs() -> None:
    (line,) = [x for x in card_markdown(RECORD).splitlines() if x.startswith("cpt-residual")]
    assert shlex.split(line) == [
        "cpt-residual", "apply", "--target", "base_cpt",
        "--base", f"org/base@{COMMIT}", "--instruct", f"org/instruct@{COMMIT}",
        "--alpha", "0.75", "--out", "merged",
    ]  # fmt: skip


def test_a_stored_residual_is_named_instead_of_its_models() -> None:
    inputs = [
        InputRecord(role="target", name="base_cpt"),
        InputRecord(role="residual", name="r", headers="e" * 64),
        InputRecord(role="base", name="", content="f" * 64),
        InputRecord(role="instruct", name="org/instruct", content="9" * 64),
    ]
    record = RECORD.model_copy(update={"inputs": inputs})
    card = card_markdown(record)
    assert "--residual r --alpha" in card
    assert "--base" not in card
    assert f"shards {'f' * 12}" in card
    assert base_models(record) == ["base_cpt", "org/instruct"]


@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        (MergeRecipe(), []),
        (MergeRecipe(method=Ties(density=0.3)), ["--method", "ties", "--density", "0.3"]),
        (
            MergeRecipe(method=Dare(drop_rate=0.25, seed=3)),
            ["--method", "dare", "--drop-rate", "0.25", "--seed", "3"],
        ),
        (MergeRecipe(method=LowRank(rank=8)), ["--method", "low_rank", "--rank", "8"]),
        (
            MergeRecipe(method=LowRank(explained_variance=0.9)),
            ["--method", "low_rank", "--explained-variance", "0.9"],
        ),
        (
            MergeRecipe(cpt_strength=0.5, auto_alpha="projection"),
            ["--cpt-strength", "0.5", "--auto-alpha", "projection"],
        ),
        (
            MergeRecipe(vocab_policy="common_tokens", new_token_rows="base_mean"),
            ["--vocab-policy", "common_tokens", "--new-token-rows", "base_mean"],
        ),
        (
            MergeRecipe(scales={"mlp": 0.5, "layers.0-3": 0.0}, embedding_rows="none"),
            ["--embedding-rows", "none", "--scale", "mlp=0.5", "--scale", "layers.0-3=0.0"],
        ),
    ],
)
def test_a_recipe_as_options_and_in_words(recipe: MergeRecipe, options: list[str]) -> None:
    assert recipe_options(recipe) == options
    card = card_markdown(RECORD.model_copy(update={"recipe": recipe}))
    assert shlex.join(options) in card
    assert ("strength of the CPT delta" in card) == (recipe.cpt_strength != 1.0)
    assert ("automatic: projection" in card) == (recipe.auto_alpha != "off")
    assert ("embedding rows" in card) == (recipe.embedding_rows != "all")
    assert all(f"`{pattern}`" in card for pattern in recipe.scales)


def test_a_name_cannot_change_the_page() -> None:
    name = 'x"|`<b>\n- evil'
    inputs = [InputRecord(role="target", name=name), *RECORD.inputs[1:]]
    card = card_markdown(RECORD.model_copy(update={"inputs": inputs, "name": "a`|b"}))
    assert front_matter(card)["base_model"][0] == name
    assert "# a__b" in card
    body = card.split("---\n", 2)[2]
    assert "<b>" not in body.split("```bash")[0]


def test_notes_are_printed_where_there_are_any() -> None:
    assert "## Notes" not in card_markdown(RECORD)
    notes = ["target: 2 tensor(s) are carried as stored: h.*.attn.bias, h.*.`x`", "base: one"]
    card = card_markdown(RECORD.model_copy(update={"notes": notes}))
    _, _, after = card.partition("## Notes\n\n")
    assert after.splitlines()[:2] == [
        r"* target: 2 tensor(s) are carried as stored: h.\*.attn.bias, h.\*._x_",
        "* base: one",
    ]

"""Kinds are stated, routes and costs are read off the declared models."""

from __future__ import annotations

import pytest

from cpt_residual.config.contrasts import VariantWords
from cpt_residual.config.packs import Pack
from cpt_residual.config.schema import (
    AppliedModel,
    InitModel,
    Model,
    Residual,
    Roles,
    TrainedModel,
    TrainRecipe,
)
from cpt_residual.results.document import Training, Variant
from cpt_residual.results.routes import Declared, describe_variants

NUM_PARAMETERS = 1_000


def trained(start: str, recipe: str) -> TrainedModel:
    return TrainedModel(kind="train", start=start, recipe=recipe)


def applied(target: str, residual: str = "family", alpha: float = 1.0) -> AppliedModel:
    return AppliedModel(kind="apply", target=target, residual=residual, alpha=alpha)


def pack(**shares: str) -> Pack:
    sources = [{"corpus": corpus, "format": form} for corpus, form in shares.items()]
    return Pack.model_validate(
        {"tokenizer": "scratch", "sequence_length": 8, "token_budget": 64, "sources": sources}
    )


def recipe(stage: str, name: str) -> TrainRecipe:
    return TrainRecipe.model_validate(
        {"stage": stage, "pack": name, "global_batch_tokens": 16, "learning_rate": 1e-3}
    )


@pytest.fixture
def declared() -> Declared:
    models: dict[str, Model] = {
        "scratch": InitModel.model_validate(
            {
                "kind": "init",
                "tokenizer_corpus": "general",
                "architecture": {
                    "vocab_size": 64,
                    "hidden_size": 8,
                    "num_layers": 1,
                    "num_heads": 1,
                    "num_key_value_heads": 1,
                    "intermediate_size": 8,
                    "max_position_embeddings": 8,
                },
            }
        ),
        "base": trained("scratch", "pretrain"),
        "instruct": trained("base", "sft"),
        "base_cpt": trained("base", "cpt"),
        "instruct_cpt": trained("instruct", "cpt"),
        "base_cpt_residual": applied("base_cpt"),
        "half": applied("base_cpt", alpha=0.5),
        "no_cpt": applied("base", alpha=0.5),
        "donor_base": trained("base", "pretrain"),
        "donor_instruct": trained("donor_base", "sft"),
        "with_donor": applied("base_cpt", "donor"),
        "base_cpt_sft": trained("base_cpt", "sft"),
        "replay": trained("instruct", "replay"),
    }
    return Declared(
        models=models,
        residuals={
            "family": Residual(base="base", instruct="instruct"),
            "donor": Residual(base="donor_base", instruct="donor_instruct"),
        },
        recipes={name: recipe(name, name) for name in ("pretrain", "sft", "cpt")}
        | {"replay": recipe("cpt", "replay")},
        packs={
            "pretrain": pack(general="text"),
            "sft": pack(instructions="chat", general="text"),
            "cpt": pack(general="text", new_domain="text"),
            "replay": pack(new_domain="text", instructions="chat"),
        },
        roles=Roles(),
        words={
            "half": VariantWords(kind="alpha", label="half of it"),
            "with_donor": VariantWords(kind="donor"),
            "base_cpt_sft": VariantWords(kind="sft"),
        },
    )


def describe(declared: Declared) -> dict[str, Variant]:
    names = [name for name in declared.models if name != "scratch"]
    trainings = [
        Training(
            model=name,
            stage="cpt",
            tokens=64,
            steps=4,
            flops=1e9,
            num_parameters=NUM_PARAMETERS,
            final_loss=1.0,
            lost_share=None,
        )
        for name, model in declared.models.items()
        if model.kind == "train"
    ]
    return {variant.name: variant for variant in describe_variants(names, declared, trainings)}


def test_kind_and_label_are_what_the_configuration_says(declared: Declared) -> None:
    found = describe(declared)
    assert {name: found[name].kind for name in ("base", "base_cpt_residual", "half", "replay")} == {
        "base": "base",
        "base_cpt_residual": "merged",
        "half": "alpha",
        "replay": "control",  # nothing is read off its recipe
    }
    assert (found["half"].label, found["base"].label) == ("half of it", "base")


def test_routes_count_what_is_spent_beyond_the_released_pair(declared: Declared) -> None:
    found = describe(declared)
    released = ("base", "instruct", "donor_base", "donor_instruct")
    assert all(found[name].flops == 0 for name in released)
    assert found["base_cpt"].flops == 1e9
    assert found["base_cpt_sft"].flops == 2e9
    assert found["base_cpt_residual"].flops == 1e9 + 3 * NUM_PARAMETERS
    assert found["with_donor"].flops == 1e9 + 3 * NUM_PARAMETERS
    assert found["no_cpt"].flops == 3 * NUM_PARAMETERS
    route = found["base_cpt_residual"].route
    assert route is not None
    assert [step.name for step in route] == [
        "cpt:base_cpt",
        "residual:family",
        "apply:base_cpt_residual",
    ]


def test_only_routes_with_dialogues_need_instruction_data(declared: Declared) -> None:
    needing = {
        name for name, variant in describe(declared).items() if variant.needs_instruction_data
    }
    assert needing == {"base_cpt_sft", "replay"}


def test_an_unmeasured_training_leaves_the_cost_unknown(declared: Declared) -> None:
    (variant,) = describe_variants(["base_cpt_sft"], declared, ())
    assert variant.route is None
    assert variant.flops is None

"""The training and init stages as the graph sees them: identity, inputs, cost."""

from __future__ import annotations

from dataclasses import replace

from cpt_residual.config.packs import Pack, PackSource
from cpt_residual.config.schema import DeepSpeed, Launch, TrainRecipe
from cpt_residual.core.stage import Stage
from cpt_residual.stages.init import Init
from cpt_residual.stages.inputs import CorpusInput
from cpt_residual.stages.pack import PackStage
from cpt_residual.stages.train import Train
from cpt_residual.stages.world import World as WorldStage
from support.stages import SMALL_WORLD
from support.training import PICO

CORPUS = CorpusInput(
    WorldStage(world=SMALL_WORLD, seed=0), "general.jsonl", "general_heldout.jsonl"
)
START = Init("init", PICO, CORPUS, seed=0)
PACK = PackStage(
    key="text",
    pack=Pack(
        tokenizer="init",
        sequence_length=16,
        token_budget=1000,
        sources=[PackSource(corpus="general")],
    ),
    tokenizer=START,
    template=None,
    sources=(CORPUS,),
    seed=0,
)
TRAIN = Train(
    key="base",
    training=TrainRecipe(stage="pretrain", pack="text", global_batch_tokens=64, learning_rate=0.01),
    start=START,
    pack=PACK,
    seed=0,
    launch=Launch(device="cpu"),
    deepspeed=DeepSpeed(),
)


def test_a_training_is_a_stage_named_after_its_recipe() -> None:
    assert isinstance(TRAIN, Stage)
    assert (TRAIN.name, TRAIN.node) == ("pretrain", "pretrain:base")
    other = replace(TRAIN, training=TRAIN.training.model_copy(update={"stage": "cpt"}))
    assert (other.name, other.node) == ("cpt", "cpt:base")
    assert TRAIN.name == "pretrain"
    assert set(TRAIN.inputs()) == {"start", "pack", "tokenizer"}


CHANGES: dict[str, object] = {
    "stage": "sft",
    "global_batch_tokens": 128,
    "learning_rate": 0.02,
    "min_learning_rate_ratio": 0.5,
    "schedule": "constant",
    "warmup_steps": 7,
    "weight_decay": 0.5,
    "adam_beta1": 0.5,
    "adam_beta2": 0.5,
    "adam_epsilon": 1e-3,
    "max_grad_norm": 0.5,
    "precision": "bf16",
}


def test_every_setting_of_the_recipe_is_identity() -> None:
    assert set(CHANGES) == set(TrainRecipe.model_fields) - {"pack"}
    for name, value in CHANGES.items():
        other = replace(TRAIN, training=TRAIN.training.model_copy(update={name: value}))
        assert other.recipe() != TRAIN.recipe(), name
    assert replace(TRAIN, seed=1).recipe() != TRAIN.recipe()


def test_the_launch_and_the_names_are_not() -> None:
    launch = Launch(threads=2, num_processes=2, micro_batch_rows=1, checkpoint_every_steps=1)
    others = [
        replace(TRAIN, launch=launch),
        replace(TRAIN, deepspeed=DeepSpeed(zero_stage=3)),
        replace(TRAIN, key="other"),
        replace(TRAIN, training=TRAIN.training.model_copy(update={"pack": "renamed"})),
    ]
    assert all(other.recipe() == TRAIN.recipe() for other in others)


def test_cost_counts_tokens_steps_flops_and_bytes() -> None:
    cost = TRAIN.cost()
    parameters = TRAIN.num_parameters()
    assert parameters == START.num_parameters() == 27552
    assert (cost.tokens, cost.steps, cost.disk_bytes) == (1000, 16, 4 * parameters)
    assert cost.flops == 1000 * (6 * parameters + 12 * 2 * 16 * 32)
    assert cost.seconds > 0.5
    assert TRAIN.resources().cores == 1


def test_threads_are_those_of_the_model() -> None:
    train = replace(TRAIN, launch=Launch(threads=1, threads_for={"base": 2}, num_processes=3))
    assert train.threads == 2
    assert train.resources().cores == 6


def test_zero_shards_the_memory() -> None:
    """Weights 2, gradients 4, optimizer 12 bytes a parameter in mixed precision."""
    training = TRAIN.training.model_copy(update={"precision": "bf16"})
    launch = Launch(device="cuda", num_processes=4, micro_batch_rows=1)

    def state(stage: object) -> int:
        zero = DeepSpeed.model_validate({"zero_stage": stage})
        train = replace(TRAIN, training=training, launch=launch, deepspeed=zero)
        return train.resources().gpu_memory_bytes - train._activations()

    parameters = TRAIN.num_parameters()
    assert state("off") == parameters * 16
    assert state(1) == parameters * (2 + 4 + 3)
    assert state(2) == parameters * (2 + 1 + 3)
    assert state(3) == -(-parameters * 18 // 4)


def test_a_start_of_unknown_size_costs_nothing_rather_than_a_guess() -> None:
    train = replace(TRAIN, start=CORPUS.stage)
    assert train.num_parameters() == 0
    assert train.cost().flops == 0
    assert train.cost().tokens == 1000


def test_seed_and_architecture_are_the_identity_of_an_initial_model() -> None:
    assert replace(START, seed=1).recipe() != START.recipe()
    wider = PICO.model_copy(update={"hidden_size": 64})
    assert replace(START, architecture=wider).recipe() != START.recipe()
    assert replace(START, key="other").recipe() == START.recipe()

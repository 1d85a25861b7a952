"""The shape of an experiment: frozen pydantic models, nothing heavier than pydantic is imported.

Hydra composes `conf/`, then `Experiment` validates the whole container at once. Field names carry
units. Identity (what enters a fingerprint) and execution (what does not) live in separate models:
`launch`, `deepspeed`, `tracking` and `paths` never change a fingerprint.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from cpt_residual.base_model import Count, FolderName, Frozen, Line, Name, PositiveInt, Text
from cpt_residual.config.contrasts import ContrastFamily, VariantWords, VerdictRule
from cpt_residual.config.corpora import Corpus, World
from cpt_residual.config.merging import (
    EXACT_STORAGE,
    PLAIN_ADDITION,
    MergeRecipe,
    Storage,
    VocabPolicy,
)
from cpt_residual.config.packs import Pack
from cpt_residual.config.suites import SuiteBase, suite_union


# --- training ------------------------------------------------------------------------------------
class TrainRecipe(Frozen):
    """What changes the trained weights. One optimizer step sees `global_batch_tokens` over all
    ranks and accumulation steps (rows = global_batch_tokens / sequence_length)."""

    stage: Literal["pretrain", "sft", "cpt"]
    pack: Name
    global_batch_tokens: PositiveInt
    learning_rate: Annotated[float, Field(gt=0)]
    min_learning_rate_ratio: Annotated[float, Field(ge=0, le=1)] = 0.1
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_steps: Count = 0
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    adam_epsilon: Annotated[float, Field(gt=0)] = 1.0e-8
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    precision: Literal["fp32", "bf16"] = "fp32"


# --- models (every node that yields a model directory) -------------------------------------------
class Architecture(Frozen):
    """A Llama or Qwen2 model made from random weights."""

    model_type: Literal["llama", "qwen2"] = "llama"
    vocab_size: PositiveInt
    hidden_size: PositiveInt
    num_layers: PositiveInt
    num_heads: PositiveInt
    num_key_value_heads: PositiveInt
    intermediate_size: PositiveInt
    max_position_embeddings: PositiveInt
    tie_word_embeddings: bool = True
    initializer_range: Annotated[float, Field(gt=0)] = 0.02
    rope_theta: Annotated[float, Field(gt=0)] = 10_000.0


class InitModel(Frozen):
    """Random weights and a BPE tokenizer trained on `tokenizer_corpus` (byte level)."""

    kind: Literal["init"]
    architecture: Architecture
    tokenizer_corpus: Name


class PretrainedModel(Frozen):
    """A released model: a hub id with a commit, or a local directory (`revision: null`)."""

    kind: Literal["pretrained"]
    source: Line
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] | None = None
    num_parameters: PositiveInt | None = None  # for the plan's estimates, when not on disk yet


class TrainedModel(Frozen):
    """`start` trained with `recipe` (a key of `recipes`)."""

    kind: Literal["train"]
    start: Name
    recipe: Name


class AppliedModel(Frozen):
    """theta_target + alpha * theta_residual (Jindal et al. 2024, eq. 2 at alpha = 1); `merge` holds
    what goes beyond plain addition."""

    kind: Literal["apply"]
    target: Name
    residual: Name
    alpha: float = 1.0
    merge: MergeRecipe = PLAIN_ADDITION


Model = Annotated[
    InitModel | PretrainedModel | TrainedModel | AppliedModel, Field(discriminator="kind")
]


class Residual(Frozen):
    """theta_instruct - theta_base (Jindal et al. 2024, eq. 1); both are keys of `models`."""

    base: Name
    instruct: Name
    storage: Storage = EXACT_STORAGE
    vocab_policy: VocabPolicy = "equal"


# --- evaluation ----------------------------------------------------------------------------------
if TYPE_CHECKING:
    Suite = SuiteBase
else:
    Suite = Annotated[suite_union(), Field(discriminator="kind")]


class Evaluation(Frozen):
    """Which variants are scored by which suites. `chat_template_of`: the model (a key of `models`)
    whose chat template every variant is asked through, so that all see the same prompt."""

    variants: Annotated[list[Name], Field(min_length=1)]
    suites: Annotated[list[Name], Field(min_length=1)]
    chat_template_of: Name
    precision: Literal["fp32", "bf16"] = "fp32"


class Roles(Frozen):
    """Who plays which part in recovery, forgetting, geometry and the verdict."""

    base: Name = "base"
    instruct: Name = "instruct"
    base_cpt: Name = "base_cpt"
    instruct_cpt: Name | None = "instruct_cpt"
    merged: Name = "base_cpt_residual"


class Goals(Frozen):
    """What an experiment was set to reach, as shares (0..1) of strict instruction following, and
    ratios of base_cpt_residual to instruct. Reported as met or missed; nothing depends on them."""

    instruct_at_least: float
    forgetting_at_least: float  # instruct - instruct_cpt
    loss_at_most: float  # instruct - base_cpt_residual
    perplexity_ratio_at_most: float  # held-out text of the new domain
    new_facts_ratio_at_least: float


# --- execution: never part of a fingerprint ------------------------------------------------------
Few = Annotated[int, Field(gt=0, le=65_536)]


class Launch(Frozen):
    """How the work is spread over machines. Never changes a fingerprint."""

    cores: Few | None = None  # budget for parallel stages; null = all cores of the machine
    threads: Few = 1  # torch threads of a training process
    threads_for: dict[Name, Few] = Field(default_factory=dict)  # model name -> threads
    num_nodes: Few = 1  # machines of every training stage; more than one through SLURM only
    num_processes: Few = 1  # ranks of every training stage on each of them (torchrun)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    micro_batch_rows: Few = 8
    eval_batch_size: Few = 32
    checkpoint_every_steps: PositiveInt = 100
    gradient_checkpointing: bool = False

    @property
    def world_size(self) -> int:
        """Ranks of a training stage, on all nodes."""
        return self.num_nodes * self.num_processes

    @property
    def ranks(self) -> str:
        """The world size as it is set."""
        nodes = f" on launch.num_nodes={self.num_nodes}" if self.num_nodes > 1 else ""
        return f"launch.num_processes={self.num_processes}{nodes}"


class DeepSpeed(Frozen):
    """ZeRO stage of the training stages; `off` is plain data parallelism."""

    zero_stage: Literal["off", 1, 2, 3] = "off"
    offload_optimizer: bool = False
    overlap_comm: bool = True


class Tracking(Frozen):
    """JSON lines are always written; W&B as asked.

    A project or an entity that is not stated is that of WANDB_PROJECT or WANDB_ENTITY; else the
    project is `cpt_residual` and the entity the default one of the account."""

    wandb: Literal["online", "offline", "off"] = "off"
    project: str | None = None
    entity: str | None = None


class Paths(Frozen):
    """`root/store` holds artifacts, `root/runs` one folder per run."""

    root: FolderName


class Experiment(Frozen):
    """One declared experiment."""

    name: Name
    question: Text
    seed: Annotated[int, Field(ge=0, lt=2**32)]  # what numpy and lm-eval take
    world: World | None = None
    corpora: dict[Name, Corpus]
    packs: dict[Name, Pack]
    recipes: dict[Name, TrainRecipe]
    models: dict[Name, Model]
    residuals: dict[Name, Residual]
    suites: dict[Name, Suite]
    evaluation: Evaluation
    roles: Roles = Roles()
    variants: dict[Name, VariantWords] = Field(default_factory=dict[str, VariantWords])
    contrasts: dict[Name, ContrastFamily | None] = Field(
        default_factory=dict[str, ContrastFamily | None]
    )
    verdict: VerdictRule | None = None
    goals: Goals | None = None
    launch: Launch = Launch()
    deepspeed: DeepSpeed = DeepSpeed()
    tracking: Tracking = Tracking()
    paths: Paths

    @property
    def families(self) -> dict[str, ContrastFamily]:
        """The contrasts that are made; `null` takes one out that another file declares."""
        return {key: family for key, family in self.contrasts.items() if family is not None}

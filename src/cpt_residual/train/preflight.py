"""Checks before any rank starts: compatibility, cost, resume point."""

from __future__ import annotations

import math
import traceback
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from cpt_residual.core.stage import Metrics
from cpt_residual.data.packing.pack_format import PackView, open_pack
from cpt_residual.data.packing.rows import PADDING, START
from cpt_residual.errors import CompatibilityError, ConfigError
from cpt_residual.modeling.loading import build_on_meta, load_config
from cpt_residual.modeling.token_side import first_differing_ids, token_map_hash
from cpt_residual.modeling.tokenizer import Tokenizer, load_tokenizer
from cpt_residual.train.checkpoint import last_complete
from cpt_residual.train.job import TrainJob

_NUM_SHOWN = 5
_ROWS_AT_ONCE = 1024


_DETECTION = "find_packed_sequence_indices"  # of transformers.masking_utils
_STATELESS = frozenset({"full_attention", "sliding_attention", "chunked_attention", "moe"})
"""Values of `layer_types` whose layers see other tokens through masked attention only."""


def keeps_documents_apart(model: PreTrainedModel) -> bool:
    """Whether all that `model`, a replica on the meta device, computes of a token stops where
    positions begin anew: attention looks at them, and no layer carries a state along the row."""
    return not _carries_state(model) and _attention_looks_at_positions(model)


def require_documents_apart(model: PreTrainedModel) -> None:
    """CompatibilityError unless `model` can be trained on packed rows."""
    if keeps_documents_apart(model):
        return
    reason = "its attention does not look at where position ids begin anew"
    if _carries_state(model):
        reason = "not all of its layers are attention: convolutions, recurrences and linear "
        reason += "attention carry a state along the row"
    raise CompatibilityError(
        f"{type(model).__name__} does not keep the documents of a packed row apart",
        problems=[reason],
        remedy="Every document would be trained with its neighbours as context. Train a model "
        "of another class, or give a pack with one document in a row.",
    )


def _carries_state(model: PreTrainedModel) -> bool:
    """By the kinds of layers that the configuration lists, and by convolutions along the row,
    which every state space model and most of the linear attentions have."""
    kinds: list[str] = getattr(model.config.get_text_config(), "layer_types", None) or []
    return not _STATELESS.issuperset(kinds) or any(
        isinstance(module, nn.Conv1d) for module in model.modules()
    )


def _attention_looks_at_positions(model: PreTrainedModel) -> bool:
    """transformers looks at the positions for that, which needs their values: without them the
    classes that look fail in that function, and those that do not (BLOOM, Falcon) run through."""
    ids_BT = torch.zeros((2, 8), dtype=torch.int64, device="meta")
    try:
        with torch.no_grad():
            model(input_ids=ids_BT, position_ids=ids_BT, use_cache=False)
    except (RuntimeError, NotImplementedError) as error:
        return any(frame.name == _DETECTION for frame in traceback.extract_tb(error.__traceback__))
    except TypeError:  # no positions
        return False
    return False


def count_training_flops(
    model: PreTrainedModel, *, num_rows: int, rows: int, sequence_length: int
) -> int:
    """Floating point operations of forward and backward over `num_rows` rows.

    How: torch's FlopCounterMode watches one forward and backward pass of `rows` rows through
    `model`, a replica on the meta device (`build_on_meta`), and the count is multiplied by
    num_rows / rows. The count follows from shapes alone, so no number has to be computed; it is
    the same for every device, rank, micro-batch and ZeRO stage. Attention is counted in full
    (T x T per head, masked or not), as eager and CPU kernels compute it; of a mixture of experts,
    those that a token is sent to (`num_experts_per_tok`, and shared ones); a second forward pass of
    gradient checkpointing, the optimizer and element-wise operations are not counted. Multiply
    and add are two operations.

    Raises CompatibilityError for a class that cannot run without values.
    """
    ids_BT = torch.zeros((rows, sequence_length), dtype=torch.int64, device="meta")
    # With a mask, transformers does not look for document starts in positions without values.
    mask_BT = torch.ones_like(ids_BT)
    try:
        with FlopCounterMode(display=False) as counter:
            output = model(input_ids=ids_BT, attention_mask=mask_BT, labels=ids_BT, use_cache=False)
            output.loss.backward()
    except (RuntimeError, TypeError, ValueError) as error:
        raise CompatibilityError(
            f"the operations of training {type(model).__name__} cannot be counted",
            problems=[" ".join(str(error).split())],
            remedy="Its forward pass asks for values, and counting is done on shapes alone. "
            "Train a model of another class.",
        ) from error
    return counter.get_total_flops() * num_rows // rows


def prepare(job: TrainJob) -> tuple[Metrics, TrainJob]:
    """The metrics that are known beforehand, and the job with its point of resumption.

    Raises CompatibilityError when pack and start model do not belong together, ConfigError when the
    pack is used up before the warm-up ends."""
    pack = open_pack(job.pack)
    num_rows, sequence_length = len(pack), pack.sequence_length
    _check_map(load_tokenizer(job.start), job.tokenizer, pack.ledger.tokenizer_map_hash)
    model = check_start(job.start, sequence_length, max_id=int(pack.ids.max()))
    if _has_packed_rows(pack):
        require_documents_apart(model)
    batching = job.batching(num_rows=num_rows, sequence_length=sequence_length)
    _check_warmup(job, num_rows=num_rows, num_steps=batching.num_steps)
    facts: Metrics = {
        "tokens": pack.ledger.tokens,
        "steps": batching.num_steps,
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "flops": count_training_flops(
            model,
            num_rows=batching.num_rows,
            rows=batching.rows_per_step,
            sequence_length=sequence_length,
        ),
    }
    checkpoint = last_complete(job.checkpoints, job.layout(batching))
    return facts, job.model_copy(update={"resume_from": checkpoint.path if checkpoint else None})


def _has_packed_rows(pack: PackView) -> bool:
    """Whether some row holds more than one document. Ends at the first such row."""
    for first in range(0, len(pack), _ROWS_AT_ONCE):
        inner = pack.flags[first : first + _ROWS_AT_ONCE, 1:]
        if (((inner & START) != 0) & ((inner & PADDING) == 0)).any():
            return True
    return False


def check_start(start: Path, sequence_length: int, *, max_id: int = 0) -> PreTrainedModel:
    """The start model without storage. Raises CompatibilityError when it cannot take sequences of
    `sequence_length` tokens with ids up to `max_id`, or is of no causal language model."""
    config = load_config(start)
    text = config.get_text_config()
    vocab_size = int(text.vocab_size)
    positions = int(getattr(text, "max_position_embeddings", 0)) or math.inf
    problems: list[str] = []
    if max_id >= vocab_size:
        problems.append(f"largest id of the pack: {max_id}, vocabulary of the model: {vocab_size}")
    if sequence_length > positions:
        problems.append(f"rows of the pack: {sequence_length} tokens, positions: {positions}")
    if problems:
        raise CompatibilityError(
            f"the pack does not fit the start model {_short(start)}",
            problems=problems,
            remedy="Make the pack with this model's tokenizer and a shorter sequence_length.",
        )
    return build_on_meta(config)


def check_trainable(start: Path, sequence_length: int, *, packed: bool) -> None:
    """`check_start`, and CompatibilityError for a class that is not trained, or not on rows of
    more than one document (`packed`)."""
    model = check_start(start, sequence_length)
    if packed:
        require_documents_apart(model)
    count_training_flops(model, num_rows=1, rows=1, sequence_length=sequence_length)


def check_tokenizers(start: Path, tokenizer: Path) -> None:
    """CompatibilityError unless both folders hold the same token map."""
    if start != tokenizer:
        found = load_tokenizer(start)
        _check_map(found, tokenizer, token_map_hash(load_tokenizer(tokenizer)))


def _check_map(start: Tokenizer, tokenizer: Path, pack_hash: str) -> None:
    start_hash = token_map_hash(start)
    if start_hash == pack_hash:
        return
    differing = first_differing_ids(load_tokenizer(tokenizer), start, _NUM_SHOWN)
    raise CompatibilityError(
        "the pack was not written with the start model's tokenizer",
        problems=[
            f"token map hash: {pack_hash[:16]} vs {start_hash[:16]} (pack vs start model)",
            *differing,
        ],
        remedy="The model would read other words than the text says. Set pack.tokenizer to a model "
        "with the same tokenizer as the start model, or make a pack for this one.",
    )


def _check_warmup(job: TrainJob, *, num_rows: int, num_steps: int) -> None:
    """How many rows dialogues or whole documents fill is known only once the pack is written."""
    recipe = job.recipe
    if recipe.warmup_steps < num_steps:
        return
    raise ConfigError(
        f"warmup_steps={recipe.warmup_steps} is not shorter than the training of {num_steps} "
        f"step(s), so learning_rate={recipe.learning_rate:g} is never reached",
        problems=[
            f"pack {recipe.pack}: {num_rows} rows",
            f"recipe.global_batch_tokens={recipe.global_batch_tokens}",
        ],
        remedy="Nothing was trained. Lower warmup_steps, or raise the pack's token_budget.",
    )


def _short(path: Path) -> str:
    return "/".join(path.parts[-2:])

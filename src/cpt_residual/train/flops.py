"""FLOPs of a training run, counted on a meta-device model."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from cpt_residual.errors import CompatibilityError


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

"""Process group of the ranks; none for a single process."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist


def _initialised() -> bool:
    return dist.is_available() and dist.is_initialized()


def barrier() -> None:
    """Wait until every rank is here."""
    if _initialised():
        dist.barrier()


def maximum(flags: Sequence[bool], device: torch.device) -> list[bool]:
    """Each flag as it is on the rank where it is largest."""
    if not _initialised():
        return list(flags)
    tensor = torch.tensor(flags, dtype=torch.int32, device=device)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return [bool(flag) for flag in tensor]


def leave_group() -> None:
    """Wait for the other ranks, then end the process group: gloo aborts at exit otherwise."""
    if _initialised():
        dist.barrier()
        dist.destroy_process_group()

"""The cores and GPUs that stages share: those that are here, or those that a plan assumes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from cpt_residual.core.measure import usable_cores
from cpt_residual.core.stage import Resources
from cpt_residual.errors import LaunchError
from cpt_residual.launch import environment
from cpt_residual.launch.environment import too_few_gpus, uses_gpu
from cpt_residual.launch.schedule import Machine

if TYPE_CHECKING:
    from cpt_residual.config.schema import Launch


def local_machine(launch: Launch, wanted: Mapping[str, Resources]) -> Machine:
    """What is here for stages that want `wanted`, by name. torch is asked for GPUs, which takes
    seconds, only when one is wanted.

    Raises LaunchError, before any work, for a stage that wants more nodes or GPUs than there are.
    """
    cores = launch.cores or usable_cores()
    several = next((name for name, each in wanted.items() if each.nodes > 1), None)
    if several is not None:
        raise LaunchError(
            f"{several} needs {launch.num_nodes} nodes, and this is one",
            problems=[f"launch.num_nodes={launch.num_nodes}"],
            remedy="Set launch.num_nodes=1, or send the plan to SLURM (slurm/README.md).",
        )
    most = max((each.gpus_per_node for each in wanted.values()), default=0)
    if not most:
        return Machine(cores)
    found = environment.visible_gpus()
    if found == 0 and launch.device == "auto":
        return Machine(cores)  # as training and evaluation will decide
    named = environment.named_gpus()
    slots = _slots(named, most if named is None and found is None else found)
    if len(slots) < most:
        raise too_few_gpus(launch, len(slots))
    return Machine(cores, slots)


def planned_machine(launch: Launch) -> Machine:
    """What a plan counts with, which may be made elsewhere: the GPUs and cores of this machine, or
    where there are fewer than a training asks for, as many as it asks for."""
    here = min(launch.cores or usable_cores(), usable_cores())
    if not uses_gpu(launch) and launch.num_nodes == 1:
        return Machine(here)
    asked = launch.num_nodes * launch.num_processes
    if not uses_gpu(launch):
        return Machine(max(here, launch.threads * asked))
    driven = len(list(Path("/dev").glob("nvidia[0-9]*")))
    slots = _slots(environment.named_gpus(), driven)
    if len(slots) < asked:
        slots = tuple(map(str, range(asked)))
    return Machine(max(here, launch.threads * asked, len(slots)), slots)


def _slots(named: tuple[str, ...] | None, found: int | None) -> tuple[str, ...]:
    """Those of `named` that are there, or numbers. A list is cut where CUDA would cut it, but for
    MIG devices: CUDA counts one of them in a process, and each worker gets one."""
    if named is None:
        return tuple(map(str, range(found or 0)))
    if found is None or any(name.startswith("MIG-") for name in named):
        return named
    return named[:found]

"""The geometry of a family: how far CPT moved, how far instruction tuning did, and whether they
point against each other. Per tensor, per module class, per layer, and over all.

drift = norm(theta_cpt - theta_b) / norm(theta_b) is the number to look at first: BonLM (2026) saw
alpha = 1 help at 0.08 and hurt at 0.18. Sums are taken in float64. Price: one read of each model,
memory of a few blocks per thread.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, fields
from typing import Literal, TypeVar

from cpt_residual.config.schema import Frozen
from cpt_residual.weights import arithmetic
from cpt_residual.weights.checkpoint import Checkpoint
from cpt_residual.weights.compatibility import require_match, side_of
from cpt_residual.weights.reader import (
    DEFAULT_STREAMING,
    Block,
    ShardReader,
    Streaming,
    blocks_of,
    map_in_order,
    require_equal_aliases,
    require_finite,
)

ModuleClass = Literal["attention", "mlp", "embeddings", "head", "norm", "other"]
Key = TypeVar("Key")
_LAYER = re.compile(r"\.(?:layers|h|blocks)\.(\d+)\.")
_CLASSES: tuple[tuple[ModuleClass, re.Pattern[str]], ...] = (  # the first that matches
    ("norm", re.compile(r"norm|\bln_")),
    ("head", re.compile(r"^lm_head\.")),
    ("embeddings", re.compile(r"embed|\bwte\b|\bwpe\b")),
    ("attention", re.compile(r"attn|attention")),
    ("mlp", re.compile(r"mlp|feed_forward|ffn")),
)


class GeometryRow(Frozen):
    """One group of elements. Norms are Euclidean; None: a side is zero, or not measured.

    cosine and sign_conflict are between the CPT delta (theta_base_cpt - theta_base) and the
    residual (theta_instruct - theta_base); sign_conflict is over elements where both move.
    cosine_deltas: between the CPT deltas of base and instruct. cosine_instruct: between the CPT
    delta of instruct and the residual; below zero, CPT of instruct undoes the residual.
    lost_to_bf16: CPT updates that vanish when the models are rounded to bf16, over all updates.
    """

    num_parameters: int
    base_norm: float
    cpt_delta_norm: float
    residual_norm: float
    drift: float | None
    cosine: float | None
    sign_conflict: float | None
    lost_to_bf16: float | None
    instruct_norm: float
    instruct_delta_norm: float | None
    instruct_drift: float | None
    cosine_deltas: float | None
    cosine_instruct: float | None


class TensorRow(GeometryRow):
    name: str
    layer: int | None
    module: ModuleClass


class GeometryReport(Frozen):
    """geometry.json. `modules` by module class, `layers` by layer number (all its tensors)."""

    total: GeometryRow
    modules: dict[str, GeometryRow]
    layers: dict[int, GeometryRow]
    tensors: list[TensorRow]


@dataclass
class _Sums:
    num_parameters: int = 0
    base_squared: float = 0.0
    delta_squared: float = 0.0
    residual_squared: float = 0.0
    delta_dot_residual: float = 0.0
    num_conflicts: int = 0
    num_both: int = 0
    num_lost: int = 0
    num_updates: int = 0
    instruct_squared: float = 0.0
    instruct_delta_squared: float = 0.0
    dot_deltas: float = 0.0
    instruct_delta_dot_residual: float = 0.0

    def add(self, other: _Sums) -> None:
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))


@dataclass(frozen=True)
class Family:
    """The models that are compared; `instruct_cpt` may be missing."""

    base: Checkpoint
    instruct: Checkpoint
    base_cpt: Checkpoint
    instruct_cpt: Checkpoint | None = None

    @property
    def models(self) -> Mapping[str, Checkpoint]:
        models = {"base": self.base, "instruct": self.instruct, "base_cpt": self.base_cpt}
        return models | ({"instruct_cpt": self.instruct_cpt} if self.instruct_cpt else {})


def measure(family: Family, *, streaming: Streaming = DEFAULT_STREAMING) -> GeometryReport:
    """The report on a family. Raises CompatibilityError for models that do not belong together."""
    for model in family.models.values():
        require_match(side_of(family.base), side_of(model))
        require_equal_aliases(model, threads=streaming.threads)
    entries = sorted(family.base.unique_tensors.values(), key=lambda entry: entry.name)
    sums = {entry.name: _Sums() for entry in entries}
    num_done = 0
    with ExitStack() as stack:
        readers = {
            role: stack.enter_context(ShardReader(model.shards))
            for role, model in family.models.items()
        }

        def block_sums(block: Block) -> tuple[Block, _Sums]:
            return block, _block_sums(family, readers, block)

        for block, part in map_in_order(block_sums, blocks_of(entries), threads=streaming.threads):
            sums[block.name].add(part)
            num_done += block.num_elements
            streaming.progress(num_done, family.base.num_parameters, "parameters")
    require_finite(
        f"{name}: NaN or Inf in one of {', '.join(family.models)}"
        for name, tensor in sums.items()
        if not all(math.isfinite(getattr(tensor, field.name)) for field in fields(tensor))
    )
    return _report(sums, with_instruct_cpt=family.instruct_cpt is not None)


def module_of(name: str) -> ModuleClass:
    """The module class of a parameter, from its name."""
    for module, pattern in _CLASSES:
        if pattern.search(name):
            return module
    return "other"


def layer_of(name: str) -> int | None:
    """The layer number of a parameter, from its name; None outside the layers."""
    found = _LAYER.search(name)
    return int(found.group(1)) if found else None


def _block_sums(family: Family, readers: Mapping[str, ShardReader], block: Block) -> _Sums:
    values = {
        role: readers[role].read(model.tensors[block.name], block.start, block.stop)
        for role, model in family.models.items()
    }
    base, instruct = values["base"].float(), values["instruct"].float()
    delta, residual = values["base_cpt"].float() - base, instruct - base
    num_conflicts, num_both = arithmetic.num_sign_conflicts(delta, residual)
    num_lost, num_updates = arithmetic.num_lost_to_bf16(values["base"], values["base_cpt"])
    sums = _Sums(
        num_parameters=block.num_elements,
        base_squared=arithmetic.squared_norm(base),
        delta_squared=arithmetic.squared_norm(delta),
        residual_squared=arithmetic.squared_norm(residual),
        delta_dot_residual=arithmetic.dot(delta, residual),
        num_conflicts=num_conflicts,
        num_both=num_both,
        num_lost=num_lost,
        num_updates=num_updates,
        instruct_squared=arithmetic.squared_norm(instruct),
    )
    if "instruct_cpt" in values:
        instruct_delta = values["instruct_cpt"].float() - instruct
        sums.instruct_delta_squared = arithmetic.squared_norm(instruct_delta)
        sums.dot_deltas = arithmetic.dot(delta, instruct_delta)
        sums.instruct_delta_dot_residual = arithmetic.dot(instruct_delta, residual)
    return sums


def _report(sums: Mapping[str, _Sums], *, with_instruct_cpt: bool) -> GeometryReport:
    def row(part: _Sums) -> GeometryRow:
        return _row(part, with_instruct_cpt=with_instruct_cpt)

    layers, total = _grouped(sums, layer_of), _grouped(sums, lambda _: "total")["total"]
    return GeometryReport(
        total=row(total),
        modules={module: row(part) for module, part in _grouped(sums, module_of).items()},
        layers={layer: row(part) for layer, part in layers.items() if layer is not None},
        tensors=[
            TensorRow(name=name, layer=layer_of(name), module=module_of(name), **dict(row(part)))
            for name, part in sums.items()
        ],
    )


def _grouped(sums: Mapping[str, _Sums], key: Callable[[str], Key]) -> dict[Key, _Sums]:
    groups: dict[Key, _Sums] = {}
    for name, part in sums.items():
        groups.setdefault(key(name), _Sums()).add(part)
    return groups


def _row(sums: _Sums, *, with_instruct_cpt: bool) -> GeometryRow:
    return GeometryRow(
        num_parameters=sums.num_parameters,
        base_norm=math.sqrt(sums.base_squared),
        cpt_delta_norm=math.sqrt(sums.delta_squared),
        residual_norm=math.sqrt(sums.residual_squared),
        drift=arithmetic.relative_norm(sums.delta_squared, sums.base_squared),
        cosine=arithmetic.cosine(
            sums.delta_dot_residual, sums.delta_squared, sums.residual_squared
        ),
        sign_conflict=_share(sums.num_conflicts, sums.num_both),
        lost_to_bf16=_share(sums.num_lost, sums.num_updates),
        instruct_norm=math.sqrt(sums.instruct_squared),
        instruct_delta_norm=math.sqrt(sums.instruct_delta_squared) if with_instruct_cpt else None,
        instruct_drift=arithmetic.relative_norm(sums.instruct_delta_squared, sums.instruct_squared)
        if with_instruct_cpt
        else None,
        cosine_deltas=arithmetic.cosine(
            sums.dot_deltas, sums.delta_squared, sums.instruct_delta_squared
        ),
        cosine_instruct=arithmetic.cosine(
            sums.instruct_delta_dot_residual, sums.instruct_delta_squared, sums.residual_squared
        ),
    )


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None

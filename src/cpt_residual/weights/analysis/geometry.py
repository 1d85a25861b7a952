"""The geometry of a family: how far CPT moved, how far instruction tuning did, and whether they
point against each other. Per tensor, per part of a layer, per module class, per layer, over all.

drift = norm(theta_cpt - theta_b) / norm(theta_b) is the number to look at first: BonLM (2026) saw
alpha = 1 help at 0.08 and hurt at 0.18. Differences and sums are float64, so a difference of two
fp32 elements is not rounded before it is squared. Price: one read of each model, memory of a few
blocks per thread.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TypeVar

from pydantic import Field

from cpt_residual.base_model import Frozen
from cpt_residual.modeling.class_names import RowPart
from cpt_residual.weights.io.checkpoint import Checkpoint
from cpt_residual.weights.io.reader import (
    DEFAULT_STREAMING,
    Block,
    ShardReader,
    Streaming,
    blocks_of,
    map_in_order,
    require_equal_aliases,
    require_finite,
)
from cpt_residual.weights.maths import arithmetic
from cpt_residual.weights.maths.geometry_kernels import FamilySums, family_sums
from cpt_residual.weights.maths.naming import ModuleClass, layer_of, module_of
from cpt_residual.weights.tokens.compatibility import require_match, side_of
from cpt_residual.weights.tokens.matching import spelled_like

Key = TypeVar("Key")
_NOTHING = FamilySums()
_PARTS: tuple[tuple[str, re.Pattern[str]], ...] = (  # the first that matches
    ("q/k/v", re.compile(r"qkv|c_attn|query_key_value|W_pack")),
    ("q", re.compile(r"\b(q_proj|q|query|wq)\b")),
    ("k", re.compile(r"\b(k_proj|k|key|wk)\b")),
    ("v", re.compile(r"\b(v_proj|v|value|wv)\b")),
    ("o", re.compile(r"attn\.c_proj|\b(o_proj|o|out_proj|wo)\b|attention\.dense\b")),
    ("gate/up", re.compile(r"gate_up")),
    ("gate", re.compile(r"\b(gate_proj|w1)\b")),
    ("up", re.compile(r"\b(up_proj|w3|c_fc|fc1)\b|dense_h_to_4h")),
    ("down", re.compile(r"mlp\.c_proj|\b(down_proj|w2|fc2)\b|dense_4h_to_h")),
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


class CellRow(GeometryRow):
    """One part of one layer (see `part_of`); layer None: outside the layers."""

    layer: int | None
    module: ModuleClass
    part: str


class GeometryReport(Frozen):
    """geometry.json. `modules` by module class, `layers` by layer number (all its tensors),
    `cells` by layer, module class and part: the grid of the heat maps."""

    total: GeometryRow
    modules: dict[str, GeometryRow]
    layers: dict[int, GeometryRow]
    tensors: list[TensorRow]
    cells: list[CellRow] = Field(default_factory=list[CellRow])  # older reports have none


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

    def spelled_alike(self) -> Family:
        """The same models, all by base's names."""
        names = self.base.own_names
        return Family(**{role: spelled_like(names, model) for role, model in self.models.items()})


def measure(family: Family, *, streaming: Streaming = DEFAULT_STREAMING) -> GeometryReport:
    """The report on a family. Raises CompatibilityError for models that do not belong together."""
    family = family.spelled_alike()
    for model in family.models.values():
        require_match(side_of(family.base), side_of(model))
        require_equal_aliases(model, threads=streaming.threads)
    entries = sorted(family.base.unique_tensors.values(), key=lambda entry: entry.name)
    sums = {entry.name: _NOTHING for entry in entries}
    num_done = 0
    with ExitStack() as stack:
        readers = {
            role: stack.enter_context(ShardReader(model.shards))
            for role, model in family.models.items()
        }

        def block_sums(block: Block) -> tuple[Block, FamilySums]:
            return block, _block_sums(family, readers, block)

        for block, part in map_in_order(block_sums, blocks_of(entries), threads=streaming.threads):
            sums[block.name] = sums[block.name].plus(part)
            num_done += block.num_elements
            streaming.progress(num_done, family.base.num_parameters, "parameters")
    require_finite(
        f"{name}: NaN or Inf in one of {', '.join(family.models)}"
        for name, tensor in sums.items()
        if not all(map(math.isfinite, tensor))
    )
    rows = side_of(family.base).rows
    return _report(sums, rows, with_instruct_cpt=family.instruct_cpt is not None)


def part_of(name: str, rows: Mapping[str, RowPart]) -> str:
    """The part of its module class that a parameter belongs to, from its name: q, k, v or o of
    attention, gate, up or down of the mlp (`q/k/v`, `gate/up` where a model fuses them); the module
    class itself for all else. A bias belongs to its weight's part; experts are one part. rows: see
    `module_of`."""
    module = module_of(name, rows)
    if module in ("attention", "mlp"):
        for part, pattern in _PARTS:
            if pattern.search(name):
                return part
    return module


def _block_sums(family: Family, readers: Mapping[str, ShardReader], block: Block) -> FamilySums:
    raw = {
        role: readers[role].read_reusing(model.tensors[block.name], block.start, block.stop)
        for role, model in family.models.items()
    }
    return family_sums(raw["base"], raw["instruct"], raw["base_cpt"], raw.get("instruct_cpt"))


def _report(
    sums: Mapping[str, FamilySums], rows: Mapping[str, RowPart], *, with_instruct_cpt: bool
) -> GeometryReport:
    def row(part: FamilySums) -> GeometryRow:
        return _row(part, with_instruct_cpt=with_instruct_cpt)

    layers, total = _grouped(sums, layer_of), _grouped(sums, lambda _: "total")["total"]
    modules_of: dict[str, ModuleClass] = {name: module_of(name, rows) for name in sums}
    cells = _grouped(sums, lambda name: (layer_of(name), modules_of[name], part_of(name, rows)))
    modules = _grouped(sums, modules_of.__getitem__)
    return GeometryReport(
        total=row(total),
        modules={name: row(part) for name, part in modules.items()},
        layers={layer: row(part) for layer, part in layers.items() if layer is not None},
        tensors=[
            TensorRow(name=name, layer=layer_of(name), module=modules_of[name], **dict(row(part)))
            for name, part in sums.items()
        ],
        cells=[
            CellRow(layer=layer, module=module, part=part, **dict(row(cell)))
            for (layer, module, part), cell in cells.items()
        ],
    )


def _grouped(sums: Mapping[str, FamilySums], key: Callable[[str], Key]) -> dict[Key, FamilySums]:
    groups: dict[Key, FamilySums] = {}
    for name, part in sums.items():
        groups[key(name)] = groups.get(key(name), _NOTHING).plus(part)
    return groups


def _row(sums: FamilySums, *, with_instruct_cpt: bool) -> GeometryRow:
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

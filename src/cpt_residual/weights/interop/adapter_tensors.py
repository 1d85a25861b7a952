"""The tensors of a PEFT adapter, sorted by what they do to which tensor of the base.

Names as peft writes them: `base_model.model.` + the module's name in the base +
`.lora_A.weight` (rank, in), `.lora_B.weight` (out, rank); for embeddings `.lora_embedding_A` (rank,
tokens), `.lora_embedding_B` (columns, rank); without either ending a tensor is stored whole. With
an embedding that has other rows than the base's, what is not trained is stored too
(`.base_layer.weight`, `.original_module.weight`): of a tied pair it is both.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property

from cpt_residual.errors import CompatibilityError
from cpt_residual.weights.checkpoint import Checkpoint
from cpt_residual.weights.interop.adapter_config import MERGE_WITH_PEFT, AdapterConfig
from cpt_residual.weights.shard_header import Shape, Shard, TensorEntry

_PREFIX = "base_model.model."
_FROZEN = (".base_layer.weight", ".original_module.weight")
_SAVED = ".modules_to_save.weight"  # beside the same tensor without it
_ENDS: Mapping[str, tuple[str, bool]] = {
    ".lora_A.weight": ("A", False),
    ".lora_B.weight": ("B", False),
    ".lora_embedding_A": ("A", True),
    ".lora_embedding_B": ("B", True),
}


@dataclass(frozen=True)
class Pair:
    """B (`left`) and A (`right`) of one module, and whether they are an embedding's."""

    module: str
    left: TensorEntry
    right: TensorEntry
    embedding: bool

    @property
    def rank(self) -> int:
        return self.right.shape[0]

    @property
    def shape(self) -> Shape:
        """Of B @ A; for an embedding of its transpose."""
        rows, columns = self.left.shape[0], self.right.shape[1]
        return (columns, rows) if self.embedding else (rows, columns)


@dataclass(frozen=True)
class AdapterTensors:
    """By the name of the base's tensor: factors to add, tensors that replace it.

    tied: the head of a tied base of which the adapter changes either part, to its embedding.
    """

    pairs: Mapping[str, Pair]
    whole: Mapping[str, TensorEntry]
    tied: Mapping[str, str]
    base: Checkpoint

    @cached_property
    def start(self) -> Mapping[str, TensorEntry]:
        """The base's tensors once, and what a head that was tied begins with."""
        heads = {alias: self.base.tensors[owner] for alias, owner in self.tied.items()}
        return {**self.base.unique_tensors, **heads}

    @property
    def rows(self) -> Collection[str]:
        """Those with one row per token; the class is asked."""
        return {*self.base.rows, *self.tied}

    def stored(self, name: str) -> TensorEntry:
        """What factors are added to: a tensor of the adapter, else of the base."""
        return self.whole.get(name) or self.start[name]


def sort_tensors(shard: Shard, config: AdapterConfig, base: Checkpoint) -> AdapterTensors:
    """The adapter's tensors, every one of them with a place in `base`.

    Raises CompatibilityError that lists each tensor without one: unknown names, factors without
    their other half, ranks that the configuration does not state, shapes that do not fit.
    """
    problems: list[str] = []
    halves: dict[str, dict[str, TensorEntry]] = {}
    embeddings: set[str] = set()
    whole: dict[str, TensorEntry] = {}
    frozen: dict[str, TensorEntry] = {}
    for entry in shard.tensors:
        if not entry.name.startswith(_PREFIX):
            problems.append(f"{entry.name}: does not begin with {_PREFIX}")
            continue
        name = entry.name.removeprefix(_PREFIX)
        end = next((end for end in _ENDS if name.endswith(end)), None)
        if end is None:
            own = name
            for ending in (*_FROZEN, _SAVED):
                own = own.replace(ending, ".weight")
            (frozen if name.endswith(_FROZEN) else whole)[own] = entry
            continue
        half, is_embedding = _ENDS[end]
        module = name.removesuffix(end)
        halves.setdefault(module, {})[half] = entry
        embeddings |= {module} if is_embedding else set()
    pairs = _paired(halves, embeddings, problems)
    other_of = {**base.tied, **{owner: alias for alias, owner in base.tied.items()}}
    problems += [
        line
        for name, pair in pairs.items()
        for line in _pair_problems(name, pair, config, pairs.get(other_of.get(name, "")))
    ]
    for name, other in other_of.items():
        if name in frozen:
            frozen.setdefault(other, frozen[name])
    whole = {**frozen, **whole}
    tied = {a: b for a, b in base.tied.items() if not {a, b}.isdisjoint((*pairs, *whole))}
    found = AdapterTensors(pairs=pairs, whole=whole, tied=tied, base=base)
    problems += _whole_problems(found, config)
    problems += _fit_problems(found, transposed=config.fan_in_fan_out)
    problems += _row_problems(found)
    if not shard.tensors:
        problems.append("there are no tensors")
    if problems:
        raise CompatibilityError(
            f"adapter: {len(problems)} problem(s) with the tensors of {shard.path}",
            problems=problems,
            remedy="Nothing is skipped. Give the base that the adapter was trained on, or "
            + MERGE_WITH_PEFT,
        )
    return found


def _paired(
    halves: Mapping[str, Mapping[str, TensorEntry]], embeddings: set[str], problems: list[str]
) -> dict[str, Pair]:
    pairs: dict[str, Pair] = {}
    for module, found in halves.items():
        if set(found) != {"A", "B"}:
            problems.append(f"{module}: only lora_{next(iter(found))}")
        elif any(len(entry.shape) != 2 for entry in found.values()):
            shapes = ", ".join(str(entry.shape) for entry in found.values())
            problems.append(f"{module}: factors {shapes} are not matrices")
        else:
            pairs[f"{module}.weight"] = Pair(module, found["B"], found["A"], module in embeddings)
    return pairs


def _pair_problems(name: str, pair: Pair, config: AdapterConfig, other: Pair | None) -> list[str]:
    """other: of a tied pair's other part; ensure_weight_tying adds it where one is a target."""
    problems: list[str] = []
    if pair.left.shape[1] != pair.rank:
        problems.append(f"{name}: B {pair.left.shape} @ A {pair.right.shape} is no product")
    elif pair.rank != config.rank(pair.module):
        problems.append(
            f"{name}: rank {pair.rank}, the configuration says {config.rank(pair.module)}"
        )
    if not any(config.targets(each.module) for each in (pair, other) if each):
        problems.append(f"{name}: target_modules does not name it")
    return problems


def _whole_problems(found: AdapterTensors, config: AdapterConfig) -> list[str]:
    """A tensor that is stored whole is a vocabulary's, or named by modules_to_save. One of a tied
    pair alone must be named too: else it cannot be known what the other one is."""
    problems: list[str] = []
    alone = {
        name: other
        for alias, owner in found.tied.items()
        for name, other in ((alias, owner), (owner, alias))
        if other not in found.whole
    }
    for name in found.whole:
        if name not in found.start:
            problems.append(f"{name}: the base has no such tensor")
        elif config.saves(name.rpartition(".")[0]):
            continue
        elif name in alone:
            problems.append(
                f"{name}: stored whole without {alone[name]}, which the base ties to it, and "
                "modules_to_save does not name it"
            )
        elif name not in found.rows:
            problems.append(f"{name}: stored whole, but modules_to_save does not name it")
    return problems


def _fit_problems(found: AdapterTensors, *, transposed: bool) -> list[str]:
    problems: list[str] = []
    for name, pair in found.pairs.items():
        if name not in found.start:
            problems.append(f"{name}: the base has no such tensor")
            continue
        expected = found.stored(name).shape
        shape = pair.shape[::-1] if transposed and not pair.embedding else pair.shape
        if expected != shape:
            problems.append(f"{name}: base {expected} vs adapter {shape}")
    return problems


def _row_problems(found: AdapterTensors) -> list[str]:
    """Only vocabulary tensors may change their rows, and then all of them alike."""
    problems: list[str] = []
    rows: dict[str, int] = {}
    if all(found.stored(name).shape == entry.shape for name, entry in found.start.items()):
        return []
    vocabulary = found.rows
    for name, entry in found.start.items():
        shape, free = found.stored(name).shape, name in vocabulary
        if len(shape) != len(entry.shape) or shape[free:] != entry.shape[free:]:
            problems.append(f"{name}: base {entry.shape} vs adapter {shape}")
        elif free:
            rows[name] = shape[0]
    if len(set(rows.values())) > 1:
        problems.append(
            "rows differ: " + ", ".join(f"{name} {count}" for name, count in rows.items())
        )
    return problems

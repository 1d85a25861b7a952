"""The tensors of a PEFT adapter, sorted by what they do to which tensor of the base.

Names as peft writes them: `base_model.model.` + the module's name in the base +
`.lora_A.weight` (rank, in), `.lora_B.weight` (out, rank); for embeddings `.lora_embedding_A` (rank,
tokens), `.lora_embedding_B` (columns, rank); without either ending a tensor is stored whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cpt_residual.errors import CompatibilityError
from cpt_residual.weights.checkpoint import Checkpoint
from cpt_residual.weights.interop.adapter_config import AdapterConfig
from cpt_residual.weights.shard_header import Shape, Shard, TensorEntry

_PREFIX = "base_model.model."
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
    """By the name of the base's tensor: factors to add, tensors that replace it; `tied` maps a
    stored head of a tied base to the embedding that it has to equal."""

    pairs: Mapping[str, Pair]
    whole: Mapping[str, TensorEntry]
    tied: Mapping[str, str]

    def merged_shapes(self, base: Checkpoint) -> dict[str, Shape]:
        """The shapes of the merged model, tied tensors once."""
        return {
            name: self.whole[name].shape if name in self.whole else entry.shape
            for name, entry in base.unique_tensors.items()
        }


def sort_tensors(shard: Shard, config: AdapterConfig, base: Checkpoint) -> AdapterTensors:
    """The adapter's tensors, every one of them with a place in `base`.

    Raises CompatibilityError that lists each tensor without one: unknown names, factors without
    their other half, ranks that the configuration does not state, shapes that do not fit.
    """
    problems: list[str] = []
    halves: dict[str, dict[str, TensorEntry]] = {}
    embeddings: set[str] = set()
    whole: dict[str, TensorEntry] = {}
    for entry in shard.tensors:
        if not entry.name.startswith(_PREFIX):
            problems.append(f"{entry.name}: does not begin with {_PREFIX}")
            continue
        name = entry.name.removeprefix(_PREFIX)
        end = next((end for end in _ENDS if name.endswith(end)), None)
        if end is None:
            whole[name.replace(".base_layer.weight", ".weight")] = entry
            continue
        half, is_embedding = _ENDS[end]
        module = name.removesuffix(end)
        halves.setdefault(module, {})[half] = entry
        embeddings |= {module} if is_embedding else set()
    pairs = _paired(halves, embeddings, problems)
    problems += [
        line for name, pair in pairs.items() for line in _pair_problems(name, pair, config)
    ]
    tied = _tied(base, pairs, whole, problems)
    problems += _whole_problems(whole, config, base, tied)
    problems += _fit_problems(pairs, whole, base, transposed=config.fan_in_fan_out)
    problems += _row_problems(whole, base)
    if not shard.tensors:
        problems.append("there are no tensors")
    if problems:
        raise CompatibilityError(
            f"adapter: {len(problems)} problem(s) with the tensors of {shard.path}",
            problems=problems,
            remedy="Nothing is skipped. Give the base that the adapter was trained on, or merge "
            "with peft (merge_and_unload) and give the merged directory.",
        )
    return AdapterTensors(pairs=pairs, whole=whole, tied=tied)


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


def _pair_problems(name: str, pair: Pair, config: AdapterConfig) -> list[str]:
    problems: list[str] = []
    if pair.left.shape[1] != pair.rank:
        problems.append(f"{name}: B {pair.left.shape} @ A {pair.right.shape} is no product")
    elif pair.rank != config.rank(pair.module):
        problems.append(
            f"{name}: rank {pair.rank}, the configuration says {config.rank(pair.module)}"
        )
    if not config.targets(pair.module):
        problems.append(f"{name}: target_modules does not name it")
    return problems


def _tied(
    base: Checkpoint,
    pairs: Mapping[str, Pair],
    whole: Mapping[str, TensorEntry],
    problems: list[str],
) -> dict[str, str]:
    """A tied base takes a new embedding and head together, or neither."""
    tied = dict(base.tied)
    both = (*tied.values(), *tied)
    touched = [name for name in both if name in pairs or name in whole]
    if not touched:
        return {}
    if tied and all(name in whole and name not in pairs for name in both):
        return tied
    problems.append(
        f"{' and '.join(touched)}: the base ties embedding and head (tie_word_embeddings), the "
        "adapter has trained them apart"
    )
    return {}


def _whole_problems(
    whole: Mapping[str, TensorEntry],
    config: AdapterConfig,
    base: Checkpoint,
    tied: Mapping[str, str],
) -> list[str]:
    problems: list[str] = []
    for name in whole:
        if name not in base.tensors and name not in tied:
            problems.append(f"{name}: the base has no such tensor")
        elif name in tied or config.saves(name.rpartition(".")[0]):
            continue
        elif name not in base.rows:
            problems.append(f"{name}: stored whole, but modules_to_save does not name it")
    return problems


def _fit_problems(
    pairs: Mapping[str, Pair],
    whole: Mapping[str, TensorEntry],
    base: Checkpoint,
    *,
    transposed: bool,
) -> list[str]:
    problems: list[str] = []
    for name, pair in pairs.items():
        if name not in base.tensors:
            problems.append(f"{name}: the base has no such tensor")
            continue
        expected = (whole.get(name) or base.tensors[name]).shape
        found = pair.shape[::-1] if transposed and not pair.embedding else pair.shape
        if expected != found:
            problems.append(f"{name}: base {expected} vs adapter {found}")
    return problems


def _row_problems(whole: Mapping[str, TensorEntry], base: Checkpoint) -> list[str]:
    """Only vocabulary tensors may change their rows, and then all of them alike."""
    problems: list[str] = []
    rows: dict[str, int] = {}
    shapes = {
        name: whole[name].shape if name in whole else entry.shape
        for name, entry in base.unique_tensors.items()
    }
    if all(shapes[name] == entry.shape for name, entry in base.unique_tensors.items()):
        return []
    for name, entry in base.unique_tensors.items():
        shape = shapes[name]
        free = name in base.rows
        if len(shape) != len(entry.shape) or shape[free:] != entry.shape[free:]:
            problems.append(f"{name}: base {entry.shape} vs adapter {shape}")
        elif free:
            rows[name] = shape[0]
    if len(set(rows.values())) > 1:
        problems.append(
            "rows differ: " + ", ".join(f"{name} {count}" for name, count in rows.items())
        )
    return problems

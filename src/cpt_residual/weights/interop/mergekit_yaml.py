"""A mergekit configuration (0.1.5) that computes the same formula, where there is one.

target + alpha * residual is mergekit's task_arithmetic around base with weights lambda (target) and
alpha (instruct). Settings that differ per tensor become filters with whole tensor names, longest
first, because mergekit takes the first filter that is part of a name.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Literal

from cpt_residual.config.merging import MergeRecipe
from cpt_residual.errors import CompatibilityError, ConfigError
from cpt_residual.methods.method import Factors, PerTensor
from cpt_residual.modeling.class_names import RowPart
from cpt_residual.modeling.token_side import TokenSide
from cpt_residual.weights.io.checkpoint import Checkpoint
from cpt_residual.weights.maths.dtypes import TORCH_NAMES, DtypeName
from cpt_residual.weights.maths.strengths import (
    names_parts,
    require_known_scales,
    scale_of,
)
from cpt_residual.weights.tokens import chat_contract
from cpt_residual.weights.tokens.compatibility import require_match, side_of

Setting = float | list[dict[str, str | float]]

_PLAIN = MergeRecipe()
_ALWAYS = [
    "written by cpt_residual for mergekit 0.1.5",
    "differs: mergekit rounds every step to `dtype` and the sum once more to `out_dtype`;",
    "  cpt_residual computes in float64 and rounds once",
    "differs: no union of the EOS token ids of base and instruct, config.json and",
    "  generation_config.json are base's: set eos_token_id and the generation config by hand",
]


def mergekit_yaml(
    *,
    base: Checkpoint,
    instruct: Checkpoint,
    target: Checkpoint,
    alpha: float,
    recipe: MergeRecipe = _PLAIN,
    dtype: Literal["float32", "bfloat16"] = "float32",
) -> str:
    """YAML for `mergekit-yaml`; comments say what differs. `dtype` is that of mergekit's
    arithmetic; the output has the dtype of most of the target's tensors.

    Raises CompatibilityError that names everything that mergekit has no equivalent for, and for
    models that do not belong together.
    """
    require_match(side_of(base), side_of(instruct))
    require_match(side_of(base), side_of(target))
    for other in (base, target):
        labels = ("instruct", other.role)
        chat_contract.require_same_tokens_as(instruct.path, other.path, labels=labels)
    rows = target.rows if names_parts(recipe) else dict[str, RowPart]()
    require_known_scales(target.unique_tensors, recipe.scales, rows)
    if not math.isfinite(alpha):
        raise ConfigError(f"alpha is {alpha}", remedy="Give a finite number; 1.0 is the paper.")
    strengths = _strengths(target, alpha, recipe, rows)
    counts = {name: entry.num_elements for name, entry in target.tensors.items()}
    merge = recipe.method.mergekit(Factors(recipe.cpt_strength, strengths, counts))
    problems = _without_equivalent(recipe)
    if isinstance(merge, str):
        problems.append(merge)
    if problems or isinstance(merge, str):
        raise CompatibilityError(
            f"mergekit has no equivalent for {len(problems)} setting(s)",
            problems=problems,
            remedy="Merge with cpt-residual instead, or leave them at their defaults.",
        )
    comments = [*_ALWAYS, *merge.comments]
    fields: dict[str, object] = {
        "merge_method": merge.method,
        "base_model": str(base.path),
        "models": [
            {"model": str(model.path), "parameters": _parameters(parameters)}
            for model, parameters in ((target, merge.target), (instruct, merge.instruct))
        ],
        "parameters": dict(merge.common),
        "dtype": dtype,
        "out_dtype": _main_dtype(target),
        **_tokenizer(instruct, target, comments),
    }
    return _dump(comments, fields)


def _dump(comments: list[str], fields: Mapping[str, object]) -> str:
    import yaml

    head = "".join(f"# {line}\n" for line in comments)
    return head + yaml.safe_dump(dict(fields), sort_keys=False, allow_unicode=True, width=10_000)


def _strengths(
    target: Checkpoint, alpha: float, recipe: MergeRecipe, rows: Mapping[str, RowPart]
) -> dict[str, float]:
    """alpha * scale of every stored tensor; rows that get nothing are whole tensors here."""
    strengths: dict[str, float] = {}
    for name in target.tensors:
        owner = target.aliases.get(name, name)
        skipped = recipe.embedding_rows == "none" and owner in rows
        scale = scale_of(owner, recipe.scales, rows)
        strengths[name] = 0.0 if skipped else alpha * scale
    return strengths


def _without_equivalent(recipe: MergeRecipe) -> list[str]:
    problems: list[str] = []
    if recipe.embedding_rows == "special_tokens":
        problems.append("embedding_rows: special_tokens (mergekit's weights are per tensor)")
    if recipe.auto_alpha != "off":
        problems.append(f"auto_alpha: {recipe.auto_alpha}")
    if recipe.vocab_policy != "equal":
        problems.append(
            f"vocab_policy: {recipe.vocab_policy} (its tokenizer union is another rule)"
        )
    return problems


def _parameters(values: Mapping[str, PerTensor]) -> dict[str, Setting]:
    return {
        name: value if isinstance(value, float | int) else _per_tensor(value)
        for name, value in values.items()
    }


def _per_tensor(values: Mapping[str, float]) -> Setting:
    """One number for all, or a number per tensor that differs from the most frequent one."""
    (common, _), *_ = Counter(values.values()).most_common(1)
    if len(set(values.values())) == 1:
        return common
    special = {name for name, value in values.items() if value != common}
    longest_first = sorted(values, key=lambda name: (-len(name), name))
    filters: list[dict[str, str | float]] = [
        {"filter": name, "value": values[name]}
        for name in longest_first
        if any(part in name for part in special)
    ]
    return [*filters, {"value": common}]


def _main_dtype(target: Checkpoint) -> str:
    sizes: Counter[DtypeName] = Counter()
    for entry in target.tensors.values():
        sizes[entry.dtype] += entry.num_elements
    return TORCH_NAMES[sizes.most_common(1)[0][0]]


def _tokenizer(instruct: Checkpoint, target: Checkpoint, comments: list[str]) -> dict[str, str]:
    """instruct's tokenizer, where mergekit would not cut the embedding to its number of tokens."""
    if target.class_names.unknown:
        comments += [
            "differs: no tokenizer_source (transformers does not know the class, so not whether",
            "  mergekit would cut the embedding); copy instruct's tokenizer and chat template",
            "  into the output",
        ]
        return {}
    num_ids = max(TokenSide.read(instruct.path).ids.values(), default=-1) + 1
    rows = {e.shape[0] for name, e in target.tensors.items() if name in target.rows}
    if rows == {num_ids}:
        return {"tokenizer_source": str(instruct.path)}
    comments += [
        f"differs: no tokenizer_source ({num_ids} tokens, {sorted(rows)} rows: mergekit would cut",
        "  the embedding); copy instruct's tokenizer files and chat template into the output",
    ]
    return {}

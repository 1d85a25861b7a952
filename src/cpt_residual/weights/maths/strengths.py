"""Factors on alpha and the rows that get the residual: pure functions on names, ids and sums."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from fnmatch import fnmatchcase

import numpy as np
import numpy.typing as npt

from cpt_residual.config.merging import MergeRecipe
from cpt_residual.errors import CompatibilityError, ConfigError, did_you_mean
from cpt_residual.modeling.class_names import RowPart
from cpt_residual.weights.maths.naming import MODULE_CLASSES, layer_of, module_of

_LAYERS = re.compile(r"layers\.(\d+)(?:-(\d+))?")


def projection_alpha(
    dot: float, residual_squared: float, *, low: float = 0.0, high: float = 2.0
) -> float:
    """Drift-aware alpha of one tensor: clip(1 - <delta, r> / <r, r>, low, high); 1.0 when r is 0.

    `dot` is <delta, r> of the CPT delta that is merged (lambda times it, with a strength lambda),
    `residual_squared` is <r, r>. From delta + alpha * r = merged - base follows
    <merged - base, r> = <delta, r> + alpha * <r, r>; this alpha makes it <r, r>, which is
    <instruct - base, r>: along r, the merged model is where instruct is. CPT that already went
    part of the way takes less residual, CPT that went back takes more. This project's rule, not
    from a paper. Its limit: in high dimension, unrelated updates are nearly orthogonal, so alpha
    is near 1 unless drift is large against the residual; and it looks at direction alone, so a
    drift that ruins the residual at right angles to it goes unseen. Raises CompatibilityError for
    sums that are not finite.
    """
    if not (math.isfinite(dot) and math.isfinite(residual_squared)):
        raise CompatibilityError(
            f"no alpha follows from <delta, r> = {dot} and <r, r> = {residual_squared}",
            remedy="Use models whose weights are all finite.",
        )
    if residual_squared == 0.0:
        return 1.0
    return min(max(1.0 - dot / residual_squared, low), high)


def scale_of(name: str, scales: Mapping[str, float], rows: Mapping[str, RowPart]) -> float:
    """The factor on alpha for tensor `name`: that of the last key that matches it, else 1.0.

    A key is a module class (attention, mlp, embeddings, head, norm, other), `layers.A` or
    `layers.A-B` (layer numbers, inclusive), or a glob over full tensor names (case matters).
    rows: see `naming.module_of`.
    """
    matching = [scale for key, scale in scales.items() if _matches(key, name, rows)]
    return matching[-1] if matching else 1.0


def names_parts(recipe: MergeRecipe) -> bool:
    """Whether a recipe treats embeddings or head apart from the rest, so that the class has to say
    which tensors those are."""
    return recipe.embedding_rows != "all" or any(key in MODULE_CLASSES for key in recipe.scales)


def require_known_scales(
    names: Iterable[str], scales: Mapping[str, float], rows: Mapping[str, RowPart]
) -> None:
    """Raises ConfigError that lists every scale that is not finite or matches none of `names`."""
    known = sorted(names)
    problems = [
        f"scales.{key}: {scale} is not a finite number"
        for key, scale in scales.items()
        if not math.isfinite(scale)
    ]
    problems += [
        f"scales.{key}: no tensor matches.{_nearest(key, known, rows)}"
        for key in scales
        if not any(_matches(key, name, rows) for name in known)
    ]
    if problems:
        raise ConfigError(
            f"{len(problems)} scale(s) cannot be used",
            problems=problems,
            remedy=f"A key is a module class ({', '.join(MODULE_CLASSES)}), layers (layers.A or "
            "layers.A-B, inclusive), or a glob over full tensor names.",
        )


def _matches(key: str, name: str, rows: Mapping[str, RowPart]) -> bool:
    if key in MODULE_CLASSES:
        return module_of(name, rows) == key
    if layers := _LAYERS.fullmatch(key):
        layer, first = layer_of(name), int(layers[1])
        return layer is not None and first <= layer <= int(layers[2] or first)
    return fnmatchcase(name, key)


def _nearest(key: str, names: list[str], rows: Mapping[str, RowPart]) -> str:
    if key in MODULE_CLASSES:
        present = dict.fromkeys(module_of(name, rows) for name in names)
        return f" The model has: {', '.join(present)}."
    if _LAYERS.fullmatch(key):
        layers = [layer for name in names if (layer := layer_of(name)) is not None]
        return f" The layers are {min(layers)} to {max(layers)}." if layers else " No layers."
    if "." not in key:
        return did_you_mean(key, MODULE_CLASSES)
    known = sorted({word for name in names for word in _words(name)})
    near = [
        f" Did you mean '{match}'?"
        for word in _words(key)
        if word not in known
        for match in get_close_matches(word, known, n=1)
    ]
    return "".join(near[:1])


def _words(pattern: str) -> list[str]:
    return [word for word in re.split(r"[.*?\[\]]+", pattern) if not word.isdigit()]


def special_token_rows(ids: Iterable[int], num_rows: int) -> npt.NDArray[np.bool_]:
    """Which of `num_rows` rows of an embedding or head belong to the token ids `ids` (Chat Vector,
    Huang et al. 2023, adds the residual to none or to these alone). Raises CompatibilityError for
    ids that have no row."""
    wanted = sorted(set(ids))
    if beyond := [str(token) for token in wanted if not 0 <= token < num_rows]:
        raise CompatibilityError(
            f"{len(beyond)} special token(s) have no row in a matrix of {num_rows} rows",
            problems=[f"id {token}" for token in beyond],
            remedy="The tokenizer does not belong to this model, or its embedding was cut.",
        )
    rows = np.zeros(num_rows, dtype=np.bool_)
    rows[wanted] = True
    return rows

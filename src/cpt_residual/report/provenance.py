"""Where the numbers come from: models, data, scorer and versions, as (what, value) lines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from cpt_residual.config.packs import Pack
from cpt_residual.config.schema import Model, PretrainedModel, TrainRecipe

Line = tuple[str, str]


def model_lines(
    models: Mapping[str, Model], weights: Mapping[str, tuple[str, str]]
) -> tuple[Line, ...]:
    """`weights`: model -> (fingerprint, content hash) of trained models."""
    found: list[Line] = []
    for name, model in models.items():
        if isinstance(model, PretrainedModel):
            at = f" at {model.revision}" if model.revision else ", pinned by file hashes"
            found.append((f"model {name}", f"{model.source}{at}"))
        elif name in weights:
            fingerprint, content = weights[name]
            found.append(
                (f"model {name}", f"recipe `{fingerprint[:16]}`, content `{content[:16]}`")
            )
    return tuple(found)


def data_lines(packs: Mapping[str, Pack], recipes: Mapping[str, TrainRecipe]) -> tuple[Line, ...]:
    """One line per pack that a recipe uses, one per recipe."""
    used = {recipe.pack for recipe in recipes.values()}
    found: list[Line] = []
    for name, pack in packs.items():
        if name in used:
            sources = " + ".join(
                f"{share:.6g} {source.corpus} ({source.format})"
                for share, source in zip(pack.shares, pack.sources, strict=True)
            )
            sources += f", in {len(pack.phases)} phases" if pack.phases else ""
            found.append(
                (
                    f"pack {name}",
                    f"{pack.token_budget:,} tokens in rows of {pack.sequence_length}: {sources}",
                )
            )
    for name, recipe in recipes.items():
        found.append(
            (
                f"recipe {name}",
                (
                    f"{recipe.stage} on {recipe.pack}, learning rate {recipe.learning_rate:g} "
                    f"({recipe.schedule}, {recipe.warmup_steps} warm-up steps), "
                    f"{recipe.global_batch_tokens:,} tokens per step, {recipe.precision}"
                ),
            )
        )
    return tuple(found)


def environment_lines(
    documents: Mapping[str, Mapping[str, object]],
) -> tuple[tuple[Line, ...], tuple[str, ...]]:
    """What all evaluations agree on, from their `evaluation.json`; a note for each fact on which
    they differ (then the scores were not made the same way)."""
    found: list[Line] = []
    notes: list[str] = []
    flat = {name: dict(_lines(document)) for name, document in documents.items()}
    keys = sorted({key for facts in flat.values() for key in facts} - {"variant", "seed"})
    for key in keys:
        values = {name: facts.get(key, "not given") for name, facts in flat.items()}
        different = set(values.values())
        told = "; ".join(f"{name}: {value}" for name, value in values.items())
        if len(different) == 1:
            found.append((f"evaluation, {key}", different.pop()))
        else:
            notes.append(f"The evaluations differ in {key}: {told}.")
    return tuple(found), tuple(notes)


def _lines(document: Mapping[str, object]) -> list[Line]:
    """Plain facts as they are; `tasks` one line per task."""
    found = [(key, _text(value)) for key, value in document.items() if key != "tasks"]
    tasks = document.get("tasks")
    if isinstance(tasks, Mapping):
        by_name = cast("Mapping[str, object]", tasks)
        found += [(f"task {name}", _text(by_name[name])) for name in sorted(by_name)]
    return found


def _text(value: object) -> str:
    if isinstance(value, Mapping):
        inner = cast("Mapping[str, object]", value)
        given = [key for key in sorted(inner) if inner[key] is not None]
        return ", ".join(f"{key} {_text(inner[key])}" for key in given)
    if isinstance(value, list):
        return " ".join(_text(item) for item in cast("list[object]", value))
    text = str(value)
    is_hash = len(text) == 64 and all(c in "0123456789abcdef" for c in text)
    return f"`{text[:16]}`" if is_hash else f"`{text}`" if text.startswith("<") else text

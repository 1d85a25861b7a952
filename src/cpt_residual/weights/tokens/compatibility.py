"""Whether weights and tokens of two models belong together. Every mismatch is collected first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from cpt_residual.errors import CompatibilityError
from cpt_residual.modeling.class_names import RowPart
from cpt_residual.modeling.effective_config import Config, differences
from cpt_residual.weights.io.checkpoint import Checkpoint
from cpt_residual.weights.io.shard_header import Shape


@dataclass(frozen=True)
class Side:
    """One side of a comparison: how messages call it, its tensors' shapes, its config.json, and
    which of them have one row per token; none where its class cannot be asked."""

    label: str
    shapes: Mapping[str, Shape]
    config: Config
    rows: Mapping[str, RowPart] = field(default_factory=dict[str, RowPart])

    @property
    def num_rows(self) -> int:
        """Of the embedding and the head; 0 without either."""
        shapes = (self.shapes[name] for name in self.rows if name in self.shapes)
        return max((shape[0] for shape in shapes if shape), default=0)

    def untied(self, repeated: Mapping[str, str]) -> Side:
        """The same with its tied tensors (`repeated`: to those that they repeat) by themselves."""
        if not repeated or not repeated.keys().isdisjoint(self.shapes):
            return self
        return replace(
            self,
            shapes={**self.shapes, **{a: self.shapes[b] for a, b in repeated.items()}},
            config={**self.config, "tie_word_embeddings": False},
            rows={**self.rows, **dict.fromkeys(repeated, "head")},
        )


def side_of(checkpoint: Checkpoint) -> Side:
    """A checkpoint as a side; tied tensors count once."""
    shapes = {name: entry.shape for name, entry in checkpoint.unique_tensors.items()}
    rows = dict[str, RowPart]() if checkpoint.class_names.unknown else checkpoint.rows
    return Side(label=checkpoint.role, shapes=shapes, config=checkpoint.config, rows=rows)


def require_match(expected: Side, found: Side, *, rows_may_differ: bool = False) -> None:
    """Raises CompatibilityError unless both have the same architecture, names and shapes.

    `rows_may_differ`: vocabulary tensors may differ in their number of rows (not of columns)."""
    _require_one_kind(expected, found)
    problems = _config_problems(expected, found)
    names = sorted(expected.shapes.keys() | found.shapes.keys())
    rows = expected.rows.keys() | found.rows.keys()

    def compared(side: Side, name: str) -> Shape | None:
        shape = side.shapes.get(name)
        free = rows_may_differ and shape and name in rows
        return (0, *shape[1:]) if free and shape else shape

    mismatched = [name for name in names if compared(expected, name) != compared(found, name)]
    width = max((len(name) for name in mismatched), default=0)
    for name in mismatched:
        left, right = expected.shapes.get(name), found.shapes.get(name)
        problems.append(
            f"{name + ':':<{width + 1}} {expected.label} {_text(left)} vs "
            f"{found.label} {_text(right)}"
        )
    if problems:
        raise CompatibilityError(
            f"{expected.label} does not fit {found.label} "
            f"({len(mismatched)} of {len(names)} tensors)",
            problems=problems,
            remedy=_remedy(expected, found, mismatched),
        )


def _require_one_kind(expected: Side, found: Side) -> None:
    """Refuses a model of text, images and sounds beside one of text whose part in it is not known
    (see matching.text_part_for)."""
    nested = [isinstance(side.config.get("text_config"), dict) for side in (expected, found)]
    if nested[0] == nested[1] or expected.shapes.keys() == found.shapes.keys():
        return
    whole, text = (expected, found) if nested[0] else (found, expected)
    raise CompatibilityError(
        f"{whole.label} ({whole.config.get('model_type')}) has a text model as one of its parts, "
        f"{text.label} ({text.config.get('model_type')}) is a text model, and the two do not match",
        remedy=f"Load {whole.label} with its own class, save its text model by itself "
        "(save_pretrained), and give that directory.",
    )


def require_same_tokens(
    expected_label: str, found_label: str, *, hashes: tuple[str, str], differing: Sequence[str]
) -> None:
    """Raises CompatibilityError unless the two id-to-token maps are the same.

    `hashes` are the two maps' hashes, `differing` ready lines on the first ids that differ. Equal
    shapes say nothing: rows of different tokens must never be added.
    """
    if hashes[0] == hashes[1]:
        return
    raise CompatibilityError(
        f"{expected_label} and {found_label} do not have the same tokens "
        f"(token map {hashes[0][:12]} vs {hashes[1][:12]})",
        problems=differing,
        remedy="Adding embedding rows of different tokens gives a broken model. Set "
        "vocab_policy=common_tokens (--vocab-policy common_tokens) to align rows by token, or use "
        "the tokenizer of the pair for CPT.",
    )


def _config_problems(expected: Side, found: Side) -> list[str]:
    labels = expected.label, found.label
    return [
        f"config.json {field}: {labels[0]} {left} vs {labels[1]} {right}"
        for field, left, right in differences(expected.config, found.config, roles=labels)
    ]


def _remedy(expected: Side, found: Side, mismatched: Sequence[str]) -> str:
    rows = [
        (expected.shapes[name][0], found.shapes[name][0])
        for name in mismatched
        if name in expected.rows
        and name in expected.shapes
        and name in found.shapes
        and expected.shapes[name][1:] == found.shapes[name][1:]
    ]
    if mismatched and len(rows) == len(mismatched):
        left, right = rows[0]
        return (
            f"Only the vocabulary differs: {left} rows in {expected.label}, {right} in "
            f"{found.label}. Set vocab_policy=common_tokens (--vocab-policy common_tokens) to "
            "align rows by token, or use the tokenizer of the pair for CPT and add no tokens to it."
        )
    return "Nothing is skipped, cut or resized. Use models of one family and size."


def _text(shape: Shape | None) -> str:
    return "missing" if shape is None else str(shape)

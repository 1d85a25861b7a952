"""Match tensors of checkpoints that name the same parameters differently.

Released files and those that transformers writes today often do (`h.0.` and `transformer.h.0.` of
GPT-2, `embed_out` and `lm_head` of GPT-NeoX); the class reads both as the same parameter.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace

from cpt_residual.weights.io.checkpoint import Checkpoint

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)|^\d+(?=\.)")


def spelled_like(own_names: Mapping[str, str], other: Checkpoint) -> Checkpoint:
    """`other` with its tensors under the names that `own_names` (names to the class's names) has
    for them; its text part alone where these are a text-only model's. The weights, files and
    everything that is written keep theirs."""
    other = text_part_for(own_names, other)
    if own_names.keys() == other.unique_tensors.keys():
        return other
    key_of = {own: name for name, own in own_names.items()}
    spelling = {
        stored: key_of[own]
        for stored, own in other.class_names.names.items()
        if own in key_of and key_of[own] != stored
    }
    return replace(other, spelling=spelling) if spelling else other


def text_part_for(own_names: Mapping[str, str], other: Checkpoint) -> Checkpoint:
    """The text part of `other`, if it reads images or sounds too and `own_names` are those of a
    text-only model of its family; else `other`."""
    if own_names.keys() == other.unique_tensors.keys():
        return other
    holds = other.class_names.holds_text_of(own_names.values())
    return replace(other, text_only=True) if holds else other


def by_class_names(model: Checkpoint) -> Checkpoint:
    """`model` with its tensors under the class's own names."""
    names = model.class_names.names.items()
    spelling = {stored: own for stored, own in names if stored != own}
    return replace(model, spelling=spelling) if spelling else model


def notes_on(model: Checkpoint, *, carried: bool) -> list[str]:
    """What records say about tensors that the class of `model` does not read or that go by another
    name here; often nothing. `carried`: whether what is not read is in the output all the same."""
    notes: list[str] = []
    if unknown := model.class_names.unknown:
        notes.append(
            f"{model.role}: every tensor is taken as stored, none as tied to another: its class "
            f"cannot be asked ({unknown})"
        )
    if unread := model.class_names.unread:
        what = "carried as stored" if carried else "left out"
        notes.append(
            f"{model.role}: {len(unread)} tensor(s) that {model.class_names.class_name} does not "
            f"read are {what}: {', '.join(patterns(unread))}"
        )
    if aside := model.class_names.aside:
        what = "carried as stored" if carried else "left out"
        notes.append(
            f"{model.role}: {len(aside)} tensor(s) that are no part of the text model are {what}"
        )
    if renamed := model.spelling:
        pairs = patterns(f"{stored} as {name}" for stored, name in renamed.items())
        more = ", ..." if len(pairs) > 1 else ""
        notes.append(f"{model.role}: {len(renamed)} tensor(s) go by other names: {pairs[0]}{more}")
    return notes


def patterns(names: Iterable[str]) -> list[str]:
    """Names with * for the numbers of layers and experts, each once, in order."""
    return list(dict.fromkeys(_NUMBER.sub("*", name) for name in names))

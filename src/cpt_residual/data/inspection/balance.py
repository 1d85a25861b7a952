"""The ledger of a corpus artifact, as far as any version of it goes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import cast

from pydantic import JsonValue, TypeAdapter, ValidationError

from cpt_residual.data.file_names import LEDGER_FILE
from cpt_residual.data.filters.ledger import FilterLedger
from cpt_residual.data.inspection.checks import Check, some
from cpt_residual.errors import CorruptArtifactError

_FIELD = "passes"  # as in ledger.json
_FILTERS = TypeAdapter(tuple[FilterLedger, ...])

_GIVEN = (
    ("documents", "characters"),
    ("heldout_documents", "heldout_characters"),
    ("heldout_copies_dropped", "heldout_copies_dropped_characters"),
)

JsonObject = dict[str, JsonValue]


def read_corpus_ledger(path: Path) -> JsonObject:
    """The fields of ledger.json. Raises CorruptArtifactError when it is none."""
    file = path / LEDGER_FILE
    try:
        value = cast("JsonValue", json.loads(file.read_bytes()))
    except (OSError, ValueError, RecursionError) as error:
        raise _unreadable(path, str(error)) from error
    if not isinstance(value, dict):
        raise _unreadable(path, "not a JSON object")
    return value


def filters_of(ledger: Mapping[str, JsonValue], path: Path) -> tuple[FilterLedger, ...]:
    """What was done to the documents, in order; nothing for a ledger that has no filters."""
    try:
        return _FILTERS.validate_python(ledger.get(_FIELD, ()))
    except ValidationError as error:
        problems = [
            f"{_FIELD}.{'.'.join(map(str, problem['loc']))}: {problem['msg']}"
            for problem in error.errors()
        ]
        raise _unreadable(path, some(problems)) from error


def balance_check(ledger: Mapping[str, JsonValue], filters: Sequence[FilterLedger]) -> Check:
    """Whether every document and character that came in went out or was counted as dropped."""
    name = "the ledger balances"
    read = _counts(ledger, ("documents_read", "characters_read"))
    parts = [_counts(ledger, names) for names in _GIVEN]
    if read is None or None in parts:
        return Check(name=name, state="not checked", detail="the ledger lacks some of the counts")
    given = tuple(sum(column) for column in zip(*(part for part in parts if part), strict=True))
    wrong = list(_imbalances(filters))
    stations = [("what was read", read)]
    for one in filters:
        stations += [(f"into {one.name}", (one.documents_in, one.characters_in))]
        wrong += _unequal(stations[-2:])
        stations += [(f"out of {one.name}", (one.documents_out, one.characters_out))]
    wrong += _unequal([stations[-1], ("kept, held out and copies of these", given)])
    if wrong:
        return Check(name=name, state="differs", detail=some(wrong))
    detail = "every document and character that was read was kept, held out or dropped and counted"
    return Check(name=name, state="agrees", detail=detail)


def _counts(ledger: Mapping[str, JsonValue], names: tuple[str, str]) -> tuple[int, int] | None:
    """Documents and characters."""
    documents, characters = (ledger.get(name) for name in names)
    if isinstance(documents, int) and isinstance(characters, int):
        return documents, characters
    return None


def _unequal(stations: Sequence[tuple[str, tuple[int, ...]]]) -> Iterator[str]:
    (before, left), (after, right) = stations
    for unit, one, other in zip(("documents", "characters"), left, right, strict=True):
        if one != other:
            yield f"{unit}: {before} {one:,}, {after} {other:,}"


def _imbalances(filters: Sequence[FilterLedger]) -> Iterator[str]:
    for one in filters:
        documents = sum(drop.documents for drop in one.dropped)
        characters = sum(drop.characters for drop in one.dropped)
        sides = (
            (one.documents_in, one.characters_in + one.characters_added),
            (one.documents_out + documents, one.characters_out + characters),
        )
        into, out = f"into {one.name}", f"out of {one.name} and dropped"
        yield from _unequal([(into, sides[0]), (out, sides[1])])


def _unreadable(path: Path, why: str) -> CorruptArtifactError:
    return CorruptArtifactError(
        f"corpus {path} has no readable ledger",
        problems=[f"{LEDGER_FILE}: {why}"],
        remedy="Delete the artifact and run again; it will be rebuilt.",
    )

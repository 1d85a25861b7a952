"""Vocabulary alignment: the source of each row of the merged embedding and head, by token.

A residual has instruct's rows. Rows are matched by token; rows that no token names (padding) by
their number, and only where they are unnamed on both sides. Tokens that only instruct has have no
base row: the residual keeps their rows relative to zero, as they are. Nothing here reads a file.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from cpt_residual.config.merging import VocabPolicy
from cpt_residual.errors import CompatibilityError
from cpt_residual.modeling.token_side import TokenSide, first_differing_ids, token_map_hash
from cpt_residual.weights.tokens.compatibility import require_same_tokens

RowNumbers = npt.NDArray[np.int64]
Mean = npt.NDArray[np.float64]
NONE = -1
_NUM_SHOWN = 10


@dataclass(frozen=True)
class PairPlan:
    """Where the residual's rows come from.

    base_row: for each row of instruct the row of base to subtract, or NONE (nothing is).
    common_rows: base's rows of tokens that both have, rising: what base's mean row is taken over.
    identity: equal maps and as many rows; row i is instruct's row i - base's row i.
    """

    base_row: RowNumbers
    common_rows: RowNumbers
    identity: bool

    @property
    def instruct_only(self) -> list[int]:
        """Rows that are kept relative to zero: those of tokens that base does not have, and
        padding that base does not have."""
        return np.flatnonzero(self.base_row == NONE).tolist()


@dataclass(frozen=True)
class RowPlan:
    """Where the merged model's rows come from; arrays are over its rows.

    target_row: the target's row, or NONE. residual_row: the residual's row, or NONE: the row is
    the target's. instruct_only: the row is made by `new_rows` from the residual's row, which is
    instruct's own. common_rows: rows (of target and output alike) whose tokens base, instruct and
    target all have, rising. tokens: the merged model's map; it keeps every id of the target, and
    `added` (token to id, rising) is what it has beyond. identity: plain addition of equal maps.
    """

    target_row: RowNumbers
    residual_row: RowNumbers
    instruct_only: npt.NDArray[np.bool_]
    common_rows: RowNumbers
    tokens: Mapping[str, int]
    added: Mapping[str, int]
    identity: bool

    @property
    def num_rows(self) -> int:
        return int(self.target_row.size)

    def rows_of(self, tokens: Iterable[str]) -> npt.NDArray[np.bool_]:
        """Marks the rows of those of `tokens` that the merged model has."""
        marked = np.zeros(self.num_rows, dtype=np.bool_)
        ids = (self.tokens[token] for token in tokens if token in self.tokens)
        marked[[row for row in ids if row < self.num_rows]] = True
        return marked


def plan_pair(
    base: TokenSide, instruct: TokenSide, *, base_rows: int, instruct_rows: int, policy: VocabPolicy
) -> PairPlan:
    """Rows of the residual from rows of base and instruct.

    Raises CompatibilityError under `equal` unless maps and numbers of rows are equal, and under
    `common_tokens` when instruct has ordinary tokens that base lacks: that is another tokenizer.
    """
    if base.ids == instruct.ids and base_rows == instruct_rows:
        return PairPlan(np.arange(base_rows), _named_rows(base, base_rows), identity=True)
    if policy == "equal":
        _refuse(("base", "instruct"), (base, instruct), (base_rows, instruct_rows))
    base_row = np.full(instruct_rows, NONE, dtype=np.int64)
    known = _with_rows(base, base_rows)
    for token, row in _with_rows(instruct, instruct_rows).items():
        base_row[row] = known.get(token, NONE)
    common = np.unique(base_row[base_row != NONE])
    _require_added(instruct, [int(row) for row in np.flatnonzero(base_row == NONE)], lacking="base")
    padding = _unnamed((base, base_rows), (instruct, instruct_rows))
    base_row[padding] = padding
    return PairPlan(base_row, common, identity=False)


def plan_target(
    instruct: TokenSide,
    target: TokenSide,
    *,
    instruct_only: Collection[int],
    residual_rows: int,
    target_rows: int,
    policy: VocabPolicy,
) -> RowPlan:
    """Rows of the merged model from rows of target and residual.

    `instruct` is the side whose map the residual's rows have, `instruct_only` the rows that it
    keeps relative to zero (`PairPlan.instruct_only`). Every id of the target stays. A token that
    only instruct has gets the next free id after the target's last one, in the order of instruct's
    ids, as tokenizers number added tokens; padding rows are used up before rows are appended.
    Where the target has such a token by itself, its row is nevertheless made from instruct's: the
    chat depends on it.

    Raises CompatibilityError under `equal` unless maps and numbers of rows are equal and base had
    every row; under `common_tokens` when an ordinary token would have to be added, or the target
    lacks an added token that base and instruct have, or a token that instruct has no row for.
    """
    without_base = frozenset(instruct_only)
    if instruct.ids == target.ids and residual_rows == target_rows and not without_base:
        return _plain(target, target_rows)
    if policy == "equal":
        sides, rows = (instruct, target), (residual_rows, target_rows)
        _refuse(("residual", "target"), sides, rows, without_base)
    known = _with_rows(instruct, residual_rows)
    added = _new_ids(known, instruct, target, without_base)
    start = max(target.ids.values(), default=-1) + 1
    _require_rows(target, target_rows, known=known, added=added)
    num_rows = max(target_rows, start + len(added)) if added else target_rows
    target_row, residual_row = np.arange(num_rows), np.full(num_rows, NONE, dtype=np.int64)
    target_row[target_rows:] = NONE
    target_row[list(added.values())] = NONE
    for token, row in {**_with_rows(target, target_rows), **added}.items():
        residual_row[row] = known.get(token, NONE)
    only = np.isin(residual_row, list(without_base))
    common = np.flatnonzero((residual_row != NONE) & ~only)
    padding = _unnamed((instruct, residual_rows), (target, target_rows))
    padding = padding[~np.isin(padding, [*without_base, *added.values()])]
    residual_row[padding] = padding
    return RowPlan(
        target_row=target_row,
        residual_row=residual_row,
        instruct_only=only,
        common_rows=common,
        tokens={**target.ids, **added},
        added=added,
        identity=False,
    )


def mean_row(blocks: Iterable[npt.NDArray[np.floating]]) -> Mean:
    """The mean of all rows of blocks (num_rows, width), as float64 (width,).

    The same bits however the rows are cut into blocks. Raises CompatibilityError without rows."""
    total: Mean | None = None
    num_rows = 0
    for block in blocks:
        wide = block.astype(np.float64)
        rows = wide if total is None else np.concatenate([total[np.newaxis], wide])
        total = np.add.reduce(rows, axis=0)  # row after row: numpy adds the first axis in order
        num_rows += len(block)
    if total is None or not num_rows:
        raise CompatibilityError(
            "base, instruct and target have no token in common",
            remedy="There is no mean row: use models of one family, or "
            "new_token_rows=instruct_row.",
        )
    return total / num_rows


def new_rows(
    instruct_rows: Mean, *, strength: float, means: tuple[Mean, Mean] | None = None
) -> Mean:
    """Elements of rows of tokens that only instruct has, in float64.

    Without `means` (new_token_rows=instruct_row) they are instruct's, whatever the strength is.
    With `means` (base_mean), which are the target's and base's mean rows over common tokens,
    target mean + strength * (instruct's row - base mean): the residual of a token whose base row,
    had there been one, would have been the mean (as new rows are commonly initialised: Hewitt
    2021).
    """
    if means is None:
        return instruct_rows
    target_mean, base_mean = means
    return target_mean + strength * (instruct_rows - base_mean)


def _plain(target: TokenSide, num_rows: int) -> RowPlan:
    return RowPlan(
        target_row=np.arange(num_rows),
        residual_row=np.arange(num_rows),
        instruct_only=np.zeros(num_rows, dtype=np.bool_),
        common_rows=_named_rows(target, num_rows),
        tokens=target.ids,
        added={},
        identity=True,
    )


def _new_ids(
    known: Mapping[str, int], instruct: TokenSide, target: TokenSide, without_base: frozenset[int]
) -> dict[str, int]:
    """Ids of the tokens that only instruct has and the merged model gets."""
    rowless = sorted((instruct.ids[token], token) for token in instruct.ids.keys() - known.keys())
    rowless = [(number, token) for number, token in rowless if token not in target.ids]
    if rowless:
        raise CompatibilityError(
            f"instruct names {len(rowless)} token(s) that it has no row for, and target lacks them",
            problems=[f"id {number}: {token!r}" for number, token in rowless[:_NUM_SHOWN]],
            remedy="The chat may depend on them. Resize instruct's embedding to its tokenizer, or "
            "take them out of the tokenizer.",
        )
    missing = sorted((row, token) for token, row in known.items() if token not in target.ids)
    lost = [token for row, token in missing if row not in without_base]
    lost = [token for token in lost if token in instruct.added]
    if lost:
        raise CompatibilityError(
            f"target lacks {len(lost)} added token(s) that base and instruct have",
            problems=[f"id {known[token]}: {token!r}" for token in lost[:_NUM_SHOWN]],
            remedy="The chat may depend on them, and the target has no rows for them. Give the "
            "target the tokenizer of its base, with the tokens of CPT added to it.",
        )
    new = [(row, token) for row, token in missing if row in without_base]
    _require_added(instruct, [row for row, _ in new], lacking="target")
    start = max(target.ids.values(), default=-1) + 1
    return {token: start + number for number, (_, token) in enumerate(new)}


def _require_added(instruct: TokenSide, rows: Sequence[int], *, lacking: str) -> None:
    """Only added tokens can be given to another tokenizer; ordinary ones need its merges."""
    tokens = instruct.tokens
    ordinary = [row for row in rows if row in tokens and tokens[row] not in instruct.added]
    if ordinary:
        raise CompatibilityError(
            f"instruct has {len(ordinary)} ordinary token(s) that {lacking} does not have",
            problems=[f"id {row}: {tokens[row]!r}" for row in ordinary[:_NUM_SHOWN]],
            remedy="These are different tokenizers, not one with tokens added to it, and cannot be "
            "aligned: use models of one family.",
        )


def _require_rows(
    target: TokenSide, target_rows: int, *, known: Collection[str], added: Collection[str]
) -> None:
    beyond = [token for token, row in target.ids.items() if row >= target_rows]
    problems = [f"has no row: {token!r}" for token in beyond if token in known]
    problems += [f"to be added: {token!r}" for token in added]
    if beyond and problems:
        raise CompatibilityError(
            f"target names {len(target.ids)} tokens but has only {target_rows} rows",
            problems=problems[:_NUM_SHOWN],
            remedy="Rows for these tokens would not be at their ids. Resize the embedding of the "
            "target to its tokenizer first.",
        )


def _refuse(
    labels: tuple[str, str],
    sides: tuple[TokenSide, TokenSide],
    rows: tuple[int, int],
    without_base: Collection[int] = (),
) -> NoReturn:
    """Says why these cannot simply be added, which has been found before."""
    if sides[0].ids != sides[1].ids:
        differing = first_differing_ids(*sides, _NUM_SHOWN)
        if rows[0] != rows[1]:
            differing.append(f"rows: {rows[0]} vs {rows[1]}")
        hashes = token_map_hash(sides[0]), token_map_hash(sides[1])
        require_same_tokens(*labels, hashes=hashes, differing=differing)
    if rows[0] != rows[1]:
        raise CompatibilityError(
            f"{labels[0]} and {labels[1]} have the same tokens but not the same number of rows "
            f"({rows[0]} vs {rows[1]})",
            remedy="Nothing is cut or resized. Set vocab_policy=common_tokens (--vocab-policy "
            "common_tokens) to align rows by token.",
        )
    tokens = sides[0].tokens
    first = sorted(without_base)[:_NUM_SHOWN]
    raise CompatibilityError(
        f"{labels[0]} keeps {len(without_base)} row(s) that base does not have",
        problems=[f"id {row}: {tokens[row]!r}" if row in tokens else f"row {row}" for row in first],
        remedy="They are instruct's rows, not differences, and cannot be added. Set "
        "vocab_policy=common_tokens (--vocab-policy common_tokens) and choose new_token_rows.",
    )


def _with_rows(side: TokenSide, num_rows: int) -> dict[str, int]:
    """The tokens whose id is a row (some releases name more ids than they have rows)."""
    return {token: row for token, row in side.ids.items() if row < num_rows}


def _named_rows(side: TokenSide, num_rows: int) -> RowNumbers:
    named = np.zeros(num_rows, dtype=np.bool_)
    ids = np.fromiter(side.ids.values(), dtype=np.int64, count=len(side.ids))
    named[ids[ids < num_rows]] = True
    return np.flatnonzero(named)


def _unnamed(left: tuple[TokenSide, int], right: tuple[TokenSide, int]) -> RowNumbers:
    """Rows that both have and neither names."""
    free = np.ones(min(left[1], right[1]), dtype=np.bool_)
    for side, _ in (left, right):
        free[_named_rows(side, free.size)] = False
    return np.flatnonzero(free)

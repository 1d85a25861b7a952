"""What must hold for the rows of any three vocabularies of one family."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st

from cpt_residual.modeling.token_side import TokenSide
from cpt_residual.weights.tokens.vocab_alignment import (
    NONE,
    PairPlan,
    RowPlan,
    mean_row,
    plan_pair,
    plan_target,
)
from support.raw import merge_rows

WIDTH = 2
COMMON = [f"word{number}" for number in range(6)] + ["<eos>"]
EXTRA = [f"<new{number}>" for number in range(4)]
seeds = st.integers(0, 2**32 - 1)


@dataclass(frozen=True)
class Model:
    """A vocabulary and an embedding whose rows say whose they are: (owner, token or padding)."""

    side: TokenSide
    rows: np.ndarray

    @property
    def ids(self) -> dict[str, int]:
        return dict(self.side.ids)

    @property
    def named(self) -> dict[int, str]:
        return {row: token for token, row in self.ids.items()}


@st.composite
def models(draw: st.DrawFn, extra: list[str]) -> Model:
    """Common tokens in any order, some of `extra` among or after them, some padding rows."""
    added = draw(st.lists(st.sampled_from(extra), unique=True))
    tokens = draw(st.permutations(COMMON)) if draw(st.booleans()) else COMMON
    tokens = draw(st.permutations([*tokens, *added])) if draw(st.booleans()) else [*tokens, *added]
    ids = {token: number for number, token in enumerate(tokens)}
    num_rows = len(ids) + draw(st.integers(0, 6))
    in_text = {token: True for token in tokens if token.startswith("<")}
    rng = np.random.default_rng(draw(seeds))
    # Multiples of 2^-6: every sum and difference below is exact.
    rows = rng.integers(-500, 500, size=(num_rows, WIDTH)) / 64
    return Model(TokenSide(ids, in_text, "<eos>", has_template=True), rows)


bases = models(EXTRA[:1])
instructs = models(EXTRA[:3])
targets = models([*EXTRA[1:], "<cpt>"])


def planned(base: Model, instruct: Model, target: Model) -> tuple[PairPlan, RowPlan]:
    missing = {token for token in base.ids if token in instruct.ids} - target.ids.keys()
    assume(not missing)
    pair = plan_pair(
        base.side,
        instruct.side,
        base_rows=len(base.rows),
        instruct_rows=len(instruct.rows),
        policy="common_tokens",
    )
    rows = plan_target(
        instruct.side,
        target.side,
        instruct_only=pair.instruct_only,
        residual_rows=len(instruct.rows),
        target_rows=len(target.rows),
        policy="common_tokens",
    )
    return pair, rows


def residual_of(pair: PairPlan, base: Model, instruct: Model) -> np.ndarray:
    start = np.where((pair.base_row == NONE)[:, np.newaxis], 0.0, base.rows[pair.base_row])
    return instruct.rows - start


def merged(plan: RowPlan, target: Model, residual: np.ndarray, alpha: float) -> np.ndarray:
    """The merge as an engine does it, row by row."""
    out = np.empty((plan.num_rows, WIDTH))
    for row in range(plan.num_rows):
        source, start = plan.residual_row[row], plan.target_row[row]
        if plan.instruct_only[row]:
            new = residual[source].astype(np.float32)
            out[row] = merge_rows(new[np.newaxis], alpha=alpha, dtype="F32")[0]
        else:
            out[row] = target.rows[start] + (alpha * residual[source] if source != NONE else 0.0)
    return out


@given(base=bases, instruct=instructs, target=targets)
def test_every_row_has_a_source_and_every_token_one_row(
    base: Model, instruct: Model, target: Model
) -> None:
    _, plan = planned(base, instruct, target)
    assert ((plan.target_row != NONE) | (plan.residual_row != NONE)).all()
    assert (plan.target_row[plan.residual_row == NONE] != NONE).all()
    assert ((plan.target_row != NONE) | plan.instruct_only).all()
    assert len(set(plan.tokens.values())) == len(plan.tokens)
    assert max(plan.tokens.values()) < plan.num_rows
    used = plan.residual_row[plan.residual_row != NONE].tolist()
    assert len(set(used)) == len(used)


@given(base=bases, instruct=instructs, target=targets)
def test_the_target_keeps_its_ids_and_instruct_its_tokens(
    base: Model, instruct: Model, target: Model
) -> None:
    _, plan = planned(base, instruct, target)
    assert target.ids.items() <= plan.tokens.items()
    assert plan.tokens.keys() == target.ids.keys() | instruct.ids.keys()
    kept = np.flatnonzero(plan.target_row != NONE)
    assert (plan.target_row[kept] == kept).all()
    assert plan.num_rows >= len(target.rows)
    # Consecutive, as tokenizers number what is added to them.
    start = len(target.ids)
    assert list(plan.added.values()) == list(range(start, start + len(plan.added)))
    assert plan.num_rows == max(len(target.rows), start + len(plan.added))


@given(base=bases, instruct=instructs, target=targets)
def test_rows_are_only_added_to_rows_of_the_same_token(
    base: Model, instruct: Model, target: Model
) -> None:
    pair, plan = planned(base, instruct, target)
    named = {row: token for token, row in plan.tokens.items()}
    for row, source in enumerate(plan.residual_row.tolist()):
        if source == NONE:
            continue
        assert named.get(row) == instruct.named.get(source)
        if plan.instruct_only[row]:
            assert named[row] not in base.ids
            assert pair.base_row[source] == NONE
        else:
            assert base.named.get(int(pair.base_row[source])) == named.get(row)
            assert target.named.get(row) == named.get(row)
    for token in target.ids.keys() - instruct.ids.keys():  # those that CPT has added
        assert plan.residual_row[plan.tokens[token]] == NONE
    assert {named[row] for row in plan.common_rows} == (
        base.ids.keys() & instruct.ids.keys() & target.ids.keys()
    )


@given(base=bases, instruct=instructs)
def test_base_plus_residual_is_instruct_token_by_token(base: Model, instruct: Model) -> None:
    assume(base.ids.keys() & instruct.ids.keys() == base.ids.keys())
    pair, plan = planned(base, instruct, base)
    found = merged(plan, base, residual_of(pair, base, instruct), 1.0)
    for token, row in instruct.ids.items():
        assert found[plan.tokens[token]].tolist() == instruct.rows[row].tolist()
    means = mean_row([base.rows[pair.common_rows]])
    assert means.tolist() == mean_row([base.rows[plan.common_rows]]).tolist()


@given(base=bases, instruct=instructs, target=targets)
def test_alpha_zero_leaves_the_target_but_for_new_tokens(
    base: Model, instruct: Model, target: Model
) -> None:
    pair, plan = planned(base, instruct, target)
    found = merged(plan, target, residual_of(pair, base, instruct), 0.0)
    old = np.flatnonzero(~plan.instruct_only)
    assert (found[old] == target.rows[old]).all()


@given(model=models(EXTRA), target_seed=seeds, policy=st.sampled_from(["equal", "common_tokens"]))
def test_equal_maps_are_plain_addition(model: Model, target_seed: int, policy: str) -> None:
    num_rows = len(model.rows)
    pair = plan_pair(
        model.side, model.side, base_rows=num_rows, instruct_rows=num_rows, policy=policy
    )
    plan = plan_target(
        model.side,
        model.side,
        instruct_only=pair.instruct_only,
        residual_rows=num_rows,
        target_rows=num_rows,
        policy=policy,
    )
    assert pair.identity
    assert plan.identity
    assert plan.tokens == model.ids
    rows = np.random.default_rng(target_seed).integers(-9, 9, size=(num_rows, WIDTH)) / 8
    found = merged(plan, Model(model.side, rows), model.rows, 1.0)
    assert found.tolist() == (rows + model.rows).tolist()


@given(base=bases, instruct=instructs)
def test_only_equal_maps_and_rows_pass_as_equal(base: Model, instruct: Model) -> None:
    pair, _ = planned(base, instruct, instruct)
    same = base.ids == instruct.ids and len(base.rows) == len(instruct.rows)
    assert pair.identity is same
    unchanged = pair.base_row.tolist() == list(range(len(instruct.rows)))
    assert unchanged or not same


@given(seed=seeds, cuts=st.lists(st.integers(0, 30), max_size=4))
def test_the_mean_row_does_not_depend_on_blocks(seed: int, cuts: list[int]) -> None:
    rows = np.random.default_rng(seed).standard_normal((30, 3)).astype(np.float32)
    whole = mean_row([rows])
    assert mean_row(np.split(rows, sorted(cuts))).tolist() == whole.tolist()
    assert np.allclose(whole, rows.astype(np.float64).mean(axis=0), rtol=1e-12, atol=1e-14)

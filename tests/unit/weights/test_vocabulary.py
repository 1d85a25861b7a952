"""Rows of embeddings and heads are matched by token, and refused where they cannot be."""

from __future__ import annotations

import numpy as np
import pytest

from cpt_residual.errors import CompatibilityError
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

NEWEST = ["<im_start>", "<im_end>"]


def side(*tokens: str, added: tuple[str, ...] = (), eos: str | None = None) -> TokenSide:
    """A side that numbers `tokens` from 0; those in angle brackets are added ones."""
    in_text = {token: True for token in (*tokens, *added) if token.startswith("<")}
    ids = {token: token_id for token_id, token in enumerate(tokens)}
    return TokenSide(ids=ids, added=in_text, eos_token=eos, has_template=True)


BASE = side("a", "b", "<eos>")
INSTRUCT = side("a", "b", "<eos>", *NEWEST)
GROWN = side("a", "b", "<eos>", "<code>")


def pair(
    base: TokenSide, instruct: TokenSide, rows: tuple[int, int], policy: str = "common_tokens"
) -> PairPlan:
    return plan_pair(base, instruct, base_rows=rows[0], instruct_rows=rows[1], policy=policy)


def onto(
    target: TokenSide,
    target_rows: int,
    *,
    instruct: TokenSide = INSTRUCT,
    only: tuple[int, ...] = (3, 4),
    rows: int = 5,
    policy: str = "common_tokens",
) -> RowPlan:
    return plan_target(
        instruct,
        target,
        instruct_only=only,
        residual_rows=rows,
        target_rows=target_rows,
        policy=policy,
    )


def test_special_tokens_in_what_was_padding_of_base() -> None:
    plan = pair(BASE, INSTRUCT, (8, 8))
    assert plan.base_row.tolist() == [0, 1, 2, NONE, NONE, 5, 6, 7]


def test_padding_that_base_does_not_have() -> None:
    plan = pair(BASE, BASE, (3, 5))
    assert plan.base_row.tolist() == [0, 1, 2, NONE, NONE]
    rows = onto(BASE, 5, instruct=BASE, only=(3, 4))
    assert rows.residual_row.tolist() == [0, 1, 2, NONE, NONE]  # of nothing: the target's stay
    assert rows.target_row.tolist() == [0, 1, 2, 3, 4]
    assert not rows.instruct_only.any()


def test_a_grown_target_keeps_its_tokens_and_gets_those_of_instruct() -> None:
    plan = onto(GROWN, 4)
    assert plan.tokens == {"a": 0, "b": 1, "<eos>": 2, "<code>": 3, "<im_start>": 4, "<im_end>": 5}
    assert plan.target_row.tolist() == [0, 1, 2, 3, NONE, NONE]
    assert plan.residual_row.tolist() == [0, 1, 2, NONE, 3, 4]
    assert plan.instruct_only.tolist() == [False] * 4 + [True] * 2
    assert plan.common_rows.tolist() == [0, 1, 2]
    assert plan.added == {"<im_start>": 4, "<im_end>": 5}
    assert plan.num_rows == 6
    marked = plan.rows_of(["<eos>", "<im_end>", "<nowhere>"])
    assert np.flatnonzero(marked).tolist() == [2, 5]


def test_padding_rows_are_used_before_rows_are_appended() -> None:
    plan = onto(GROWN, 7, rows=8)  # the residual's rows 5 to 7 are padding, and in base too
    assert plan.num_rows == 7
    assert plan.target_row.tolist() == [0, 1, 2, 3, NONE, NONE, 6]
    assert plan.residual_row.tolist() == [0, 1, 2, NONE, 3, 4, 6]


def test_a_token_that_only_instruct_has_in_the_pair_is_instructs_in_the_target_too() -> None:
    plan = onto(side("a", "b", "<eos>", "<im_end>"), 4)
    assert plan.tokens["<im_end>"] == 3
    assert plan.residual_row.tolist() == [0, 1, 2, 4, 3]
    assert plan.instruct_only.tolist() == [False, False, False, True, True]
    assert plan.target_row.tolist() == [0, 1, 2, 3, NONE]


def test_a_target_with_the_map_of_instruct_is_no_plain_addition_without_base_rows() -> None:
    plan = onto(INSTRUCT, 5)
    assert not plan.identity
    assert plan.instruct_only.tolist() == [False, False, False, True, True]
    with pytest.raises(CompatibilityError, match=r"keeps 2 row\(s\) that base does not") as caught:
        onto(INSTRUCT, 5, policy="equal")
    assert caught.value.problems == ("id 3: '<im_start>'", "id 4: '<im_end>'")
    assert "vocab_policy=common_tokens" in str(caught.value)


def test_same_shape_other_tokens_are_refused_with_the_first_ids() -> None:
    """The peers' trap: shapes agree by chance, rows belong to different tokens."""
    swapped = side("b", "a", "<eos>")
    with pytest.raises(CompatibilityError) as caught:
        pair(BASE, swapped, (3, 3), "equal")
    assert caught.value.what.startswith("base and instruct do not have the same tokens")
    assert caught.value.problems == ("id 0: 'a' vs 'b'", "id 1: 'b' vs 'a'")
    assert "--vocab-policy common_tokens" in str(caught.value)
    with pytest.raises(CompatibilityError, match="residual and target do not have the same tokens"):
        onto(swapped, 3, instruct=BASE, only=(), rows=3, policy="equal")
    assert pair(BASE, swapped, (3, 3)).base_row.tolist() == [1, 0, 2]


def test_at_most_ten_ids_are_listed() -> None:
    names = [f"t{number}" for number in range(30)]
    with pytest.raises(CompatibilityError) as caught:
        pair(side(*names), side(*reversed(names)), (30, 32), "equal")
    assert caught.value.problems[0] == "id 0: 't0' vs 't29'"
    assert caught.value.problems[10:] == ("rows: 30 vs 32",)


def test_equal_maps_with_other_numbers_of_rows() -> None:
    with pytest.raises(CompatibilityError, match=r"same tokens but not .* rows \(3 vs 5\)"):
        pair(BASE, BASE, (3, 5), "equal")
    with pytest.raises(CompatibilityError, match=r"residual and target .* rows \(5 vs 3\)"):
        onto(BASE, 3, instruct=BASE, only=(), policy="equal")


def test_another_tokenizer_is_not_a_grown_one() -> None:
    other = side("a", "b", "<eos>", "c", "d")
    with pytest.raises(CompatibilityError, match=r"instruct has 2 ordinary token\(s\) that base"):
        pair(BASE, other, (3, 5))
    with pytest.raises(CompatibilityError, match=r"ordinary.* that target does not") as caught:
        onto(GROWN, 4, instruct=other)
    assert caught.value.problems == ("id 3: 'c'", "id 4: 'd'")


def test_a_target_that_lost_a_special_token() -> None:
    with pytest.raises(CompatibilityError, match=r"target lacks 1 added token\(s\)") as caught:
        onto(side("a", "b"), 2)
    assert caught.value.problems == ("id 2: '<eos>'",)
    fewer = onto(side("a", "<eos>"), 2)  # an ordinary token that CPT's tokenizer does not make
    assert fewer.residual_row.tolist() == [0, 2, 3, 4]


def test_tokens_of_instruct_without_rows_are_not_left_out_in_silence() -> None:
    with pytest.raises(CompatibilityError, match="instruct names 1 token") as caught:
        onto(GROWN, 4, only=(3,), rows=4)
    assert caught.value.problems == ("id 4: '<im_end>'",)
    with_it = side("a", "b", "<eos>", "<im_start>", "<im_end>", "<code>")
    assert onto(with_it, 6, only=(3,), rows=4).num_rows == 6


def test_tokens_without_rows() -> None:
    """Some releases name more ids than the embedding has rows."""
    image = side("a", "b", "<eos>", "<image>")
    assert pair(image, image, (3, 3), "equal").common_rows.tolist() == [0, 1, 2]
    assert pair(BASE, image, (3, 3)).instruct_only == []
    kept = onto(image, 3, instruct=BASE, only=(), rows=3)
    assert kept.tokens["<image>"] == kept.num_rows == 3
    with pytest.raises(CompatibilityError, match="names 4 tokens but has only 3 rows") as caught:
        onto(image, 3)
    assert caught.value.problems == ("to be added: '<im_start>'", "to be added: '<im_end>'")
    with pytest.raises(CompatibilityError, match="has only 3 rows") as caught:
        onto(INSTRUCT, 3)
    assert caught.value.problems[0] == "has no row: '<im_start>'"


def test_new_rows_are_those_of_instruct_whatever_alpha_is() -> None:
    rows = np.array([[1.5, -0.0], [3.0e-41, 2.0]], dtype=np.float32)
    for alpha in (0.0, 0.5, -2.0):
        made = merge_rows(rows, alpha=alpha, dtype="F32")
        assert made.view(np.uint32).tolist() == rows.view(np.uint32).tolist()
    bits = merge_rows(rows[:1], alpha=1.0, dtype="BF16")
    assert bits.tolist() == [[0x3FC0, 0x8000]]


def test_new_rows_from_the_mean() -> None:
    rows = np.array([[1.0, 2.0]], dtype=np.float32)
    target_mean, base_mean = np.array([10.0, 20.0]), np.array([0.5, -1.0])
    made = merge_rows(rows, alpha=0.5, dtype="F16", means=(target_mean, base_mean))
    assert made.dtype == np.float16
    assert made.tolist() == [[10.25, 21.5]]
    unmoved = merge_rows(rows, alpha=1.0, dtype="F32", means=(base_mean, base_mean))
    assert unmoved.tolist() == rows.tolist()  # the target is base: instruct comes back


def test_new_rows_are_rounded_once() -> None:
    """1 + 2^-8 + 2^-26 lies just above the middle of two bf16 numbers; fp32 would lose that."""
    mean = np.array([1.0 + 2.0**-8])
    rows = np.array([[2.0**-26]], dtype=np.float32)
    made = merge_rows(rows, alpha=1.0, dtype="BF16", means=(mean, np.zeros(1)))
    assert made.tolist() == [[0x3F81]]


def test_the_mean_row() -> None:
    rows = np.arange(12, dtype=np.float32).reshape(4, 3)
    assert mean_row([rows[:1], rows[1:]]).tolist() == [4.5, 5.5, 6.5]
    assert mean_row([rows[:0], rows]).dtype == np.float64
    for nothing in ([], [rows[:0]]):
        with pytest.raises(CompatibilityError, match="no token in common"):
            mean_row(nothing)

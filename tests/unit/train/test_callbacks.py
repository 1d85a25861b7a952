"""What is told of a training at its end."""

from __future__ import annotations

import pytest

from cpt_residual.train.callbacks import TraceRow, last_loss


def _trace(*steps: tuple[float, int]) -> list[TraceRow]:
    """Rows of (loss, tokens of the step)."""
    rows: list[TraceRow] = []
    total = 0
    for number, (loss, tokens) in enumerate(steps, start=1):
        total += tokens
        rows.append({"step": number, "tokens": total, "loss": loss})
    return rows


def test_a_nearly_empty_last_step_does_not_stand_for_the_training() -> None:
    steps = [(1.0, 100)] * 39 + [(9.0, 1)]
    assert last_loss(_trace(*steps)) == pytest.approx((1.0 * 100 + 9.0 * 1) / 101)


def test_a_step_without_labels_is_left_out() -> None:
    assert last_loss(_trace((2.0, 8), (1.5, 8), (0.0, 1))) == 1.5


def test_without_any_loss_it_is_zero() -> None:
    assert last_loss([]) == 0.0

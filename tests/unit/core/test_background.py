"""Work in the background is done in order, and what goes wrong there is told to who asks again."""

from __future__ import annotations

import threading
from functools import cache

import pytest

from cpt_residual.core.background import begin


def test_work_is_done_in_order_and_its_errors_are_met_later(
    capfd: pytest.CaptureFixture[str],
) -> None:
    done, finished = list[str](), threading.Event()

    @cache
    def fails() -> None:
        done.append("fails")
        raise ValueError("no such thing")

    @cache
    def works() -> int:
        done.append("works")
        return 7

    begin(fails, works, finished.set)
    assert finished.wait(10)
    assert done == ["fails", "works"]
    assert works() == 7
    assert done == ["fails", "works"]
    with pytest.raises(ValueError, match="no such thing"):
        fails()
    assert capfd.readouterr().err == ""

"""A composed `tiny`, and a way to bend it."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest

from cpt_residual.config.checks import check
from cpt_residual.config.compose import compose
from cpt_residual.config.schema import Experiment
from cpt_residual.config.validate import validate
from cpt_residual.errors import ConfigError

Problems = Callable[..., list[str]]


@pytest.fixture(scope="session")
def tiny() -> Experiment:
    return compose([])


@pytest.fixture
def container(tiny: Experiment) -> dict[str, Any]:
    """`tiny` as a plain container, free to change."""
    return deepcopy(tiny.model_dump())


@pytest.fixture
def problems(container: dict[str, Any]) -> Problems:
    """problems((path, value), ...) -> the problems of `tiny` with these values set."""

    def find(*changes: tuple[str, object]) -> list[str]:
        for path, value in changes:
            *parents, last = path.split("/")
            target = container
            for parent in parents:
                target = target[int(parent)] if isinstance(target, list) else target[parent]
            target[last] = value
        with pytest.raises(ConfigError) as caught:
            check(validate(container))
        return list(caught.value.problems)

    return find

"""Whatever is done to a configuration, it ends as an experiment that can be planned or as an error
of ours: seeded mutations of composed values, of overrides, and of the bytes of a user's file."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from cpt_residual.config.checks import check
from cpt_residual.config.compose import compose, experiment_names
from cpt_residual.config.folders import conf_dir
from cpt_residual.config.overrides import expand_sweep
from cpt_residual.config.schema import Experiment
from cpt_residual.config.validate import validate
from cpt_residual.core.store import Store
from cpt_residual.errors import ConfigError, CptResidualError
from cpt_residual.stages.overview import Overview
from cpt_residual.stages.registry import build_graph, localised

FEW = {"values": 120, "overrides": 30, "files": 40}
MANY = {"values": 2_000, "overrides": 500, "files": 600}

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2**32, 2**63, -(2**70), 10**400, 0.5, -0.5, 1e308, 5e-324),
    *(
        float("nan"),
        float("inf"),
        "",
        "???",
        "off",
        "base",
        "1",
        "a b",
        "é\u202e\U0001f600",
        "a\x1b[2J",
    ),
    *(
        "\ud800",
        "..",
        "/",
        "~nobody_at_all",
        "x" * 5_000,
        "${seed}",
        "null",
        b"bytes",
        (1, 2),
        {1, 2},
    ),
    *([], [None], ["???"], [[[]]], {}, {"kind": "world"}, {"kind": ["a"]}, {1: 2}, {None: {}}),
)
TOKENS = (
    *(
        "???",
        "${seed}",
        "${nope}",
        "${oc.env:NOPE}",
        "${",
        "&a",
        "*a",
        "<<: *a",
        "!!python/name:os.system",
    ),
    *(
        "!!binary aGk=",
        "!!set {a}",
        "!x",
        "\t",
        "\n",
        "\x00",
        "\r",
        "\ufeff",
        "\u2028",
        "- ",
        ": ",
        "{",
        "}",
    ),
    *(
        "[",
        "]",
        "'",
        '"',
        "|",
        ">",
        "#",
        "---\n",
        "...\n",
        "1e400",
        ".nan",
        "9" * 400,
        "9" * 5_000,
        "off",
    ),
    *(
        "2024-01-01",
        "0x1f",
        "1:30",
        "seed: 1\n",
        "defaults: text\n",
        "hydra: {a: 1}\n",
        "? a",
        "no: 1\n",
    ),
    *(
        "[" * 300,
        "defaults: [tiny, fuzzed]\n",
        "é",
        "name",
        "models.base",
        "=",
        ",",
        "range(0,3)",
        "~",
        "+",
    ),
    *(
        "@",
        "/",
        "..",
        "\\",
        "$",
        "(",
        ")",
        "glob(*)",
        "choice(1,2)",
        "sort(1,2)",
        "shuffle(range(0,9))",
    ),
)


@cache
def containers() -> dict[str, dict[str, Any]]:
    return {name: compose([f"+experiment={name}"]).model_dump() for name in experiment_names()}


def places(value: object, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, item in items:
        yield (*path, key)
        yield from places(item, (*path, key))


def mutated(container: dict[str, Any], chance: random.Random) -> dict[str, Any]:
    """`container` with one to three changes somewhere in it."""
    container = deepcopy(container)
    for _ in range(chance.randint(1, 3)):
        path = chance.choice(list(places(container)))
        parent: Any = container
        for part in path[:-1]:
            parent = parent[part]
        key, change = path[-1], chance.randrange(5)
        if change == 0:
            del parent[key]
        elif change == 1 and isinstance(parent, dict):
            parent[misspelt(str(key), chance)] = parent.pop(key)
        elif change == 2:
            parent[key] = [parent[key]] if chance.random() < 0.5 else {"a": parent[key]}
        elif change == 3 and isinstance(parent[key], (int, float)):
            parent[key] = chance.choice([parent[key] * 10**9, -parent[key], str(parent[key])])
        else:
            parent[key] = deepcopy(chance.choice(VALUES))
    return container


def misspelt(text: str, chance: random.Random) -> str:
    """`text` with one character more, less, or another."""
    at = chance.randrange(len(text) + 1)
    return (
        text[:at] + chance.choice(["", "e", "_", ".", " ", "é"]) + text[at + chance.randrange(2) :]
    )


def garbled(text: str, chance: random.Random) -> str:
    """`text` with one to three tokens put in, cut out, or written twice."""
    for _ in range(chance.randint(1, 3)):
        start = chance.randrange(len(text) + 1)
        end = min(len(text), start + chance.randint(0, 12))
        between = chance.choice(
            [chance.choice(TOKENS), "", text[start:end] * 2, misspelt("", chance)]
        )
        text = text[:start] + between + text[chance.choice([start, end]) :]
    return text


def outcome(make: Callable[[], Experiment], folder: Path) -> str:
    """`planned` or `refused`; anything else that is raised fails the test."""
    try:
        experiment = make()
    except ConfigError as error:
        return readable(error)
    assert Experiment.model_validate_json(experiment.model_dump_json()) == experiment
    try:
        experiment = localised(experiment)
        store = Store(folder)
        Overview.of(build_graph(experiment, store), store)
    except CptResidualError:
        return "refused"
    return "planned"


def readable(error: ConfigError) -> str:
    assert str(error).strip()
    assert "Traceback" not in str(error)
    assert len(str(error)) < 20_000
    return "refused"


def both(found: list[str]) -> None:
    """The mutations are neither all harmless nor all fatal."""
    assert set(found) == {"planned", "refused"}


def sizes(kind: str) -> pytest.MarkDecorator:
    many = pytest.param(2, MANY[kind], marks=pytest.mark.slow)
    return pytest.mark.parametrize(("seed", "number"), [(1, FEW[kind]), many])


@sizes("values")
def test_composed_values(seed: int, number: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    found: list[str] = []
    for _ in range(number):
        container = mutated(containers()[chance.choice(sorted(containers()))], chance)

        def made(container: dict[str, Any] = container) -> Experiment:
            experiment = validate(container)
            check(experiment)
            return experiment

        found.append(outcome(made, tmp_path))
    both(found)


OVERRIDES = (
    *(
        "seed=3",
        "+experiment=tiny",
        "deepspeed=zero2",
        "launch.num_processes=2",
        "paths.root=/tmp/x",
    ),
    *(
        "evaluation.variants=[base,instruct]",
        "recipes.cpt.learning_rate=1.0e-4",
        "~goals",
        "name=a-b",
    ),
    *("models.base_cpt_residual.alpha=0.5", 'question="a, b"', "packs.cpt.sources.0.share=1.0"),
    *(
        "corpora.new_domain={kind:local,files:[a.txt]}",
        "+models.x={kind:train,start:base,recipe:cpt}",
    ),
    *("suite=[world,heldout]", "tracking=off", "launch.threads_for={base:2}", "launch@packs=local"),
)


@sizes("overrides")
def test_overrides(seed: int, number: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    found: list[str] = []
    for _ in range(number):
        chosen = chance.sample(OVERRIDES, chance.randint(1, 2))
        overrides = [
            garbled(chosen[0], chance) if chance.random() < 0.9 else chosen[0],
            *chosen[1:],
        ]
        try:
            expand_sweep(overrides)
        except ConfigError as error:
            readable(error)
        found.append(outcome(lambda each=overrides: compose(each), tmp_path / "store"))
    both(found)


@sizes("files")
def test_files_of_the_user(seed: int, number: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    group = tmp_path / "conf" / "experiment"
    group.mkdir(parents=True)
    packaged = [path.read_text() for path in sorted((conf_dir() / "experiment").glob("*.yaml"))]
    found: list[str] = []
    for _ in range(number):
        data = garbled(chance.choice(packaged), chance).encode("utf-8", "surrogateescape")
        if chance.random() < 0.2:
            at = chance.randrange(len(data))
            data = data[:at] + chance.randbytes(chance.randint(1, 4)) + data[at:]
        data = data.decode("utf-8", "replace").encode("utf-16") if chance.random() < 0.03 else data
        (group / "fuzzed.yaml").write_bytes(data)
        make = lambda: compose(["+experiment=fuzzed"], config_dir=tmp_path / "conf")  # noqa: E731
        found.append(outcome(make, tmp_path / "store"))
    both(found)

"""Growth is a decision: more options, dependencies, files or lines than `growth.json` allows fail
here. CONTRIBUTING.md, section Growth, says what each has to pay for."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.core import TyperCommand, TyperGroup

from cpt_residual.cli.app import app

ROOT = Path(__file__).parents[2]
CEILINGS: dict[str, int] = json.loads(Path(__file__).with_name("growth.json").read_text())


def options(command: object) -> Iterator[str]:
    """`verb --option` of a command and of all below it."""
    assert isinstance(command, (TyperCommand, TyperGroup))
    for parameter in command.params:
        yield f"{command.name} {parameter.opts[0]}"
    for below in command.commands.values() if isinstance(command, TyperGroup) else ():
        yield from options(below)


def measured() -> dict[str, int]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    files = list((ROOT / "src").rglob("*.py"))
    return {
        "options_of_cpt_residual": len(list(options(typer.main.get_command(app)))),
        "runtime_dependencies": len(project["dependencies"]),
        "source_files": len(files),
        "source_lines": sum(len(path.read_text().splitlines()) for path in files),
    }


@pytest.mark.parametrize("name", CEILINGS)
def test_the_house_has_not_grown_unnoticed(name: str) -> None:
    found = measured()
    assert set(found) == set(CEILINGS)
    assert found[name] <= CEILINGS[name], (
        f"{name}: {found[name]:,}, above {CEILINGS[name]:,}. Remove something, or raise the number "
        "in tests/golden/growth.json and say in the commit what it pays for."
    )

"""The built wheel carries its configuration and works from any directory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

REPOSITORY = Path(__file__).parents[2]
COMPOSE = """
from pathlib import Path
import cpt_residual
from cpt_residual.config.compose import compose, experiment_names
from cpt_residual.config.folders import conf_dir
package = Path(cpt_residual.__file__).parent
assert conf_dir() == package / "conf", conf_dir()
for name in experiment_names():
    assert compose([f"+experiment={name}"]).name == name
print(package, *experiment_names())
"""


def run(*command: object, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, cwd=REPOSITORY)
    (built,) = out.glob("*.whl")
    return built


def test_the_wheel_holds_every_configuration_file(wheel: Path) -> None:
    shipped = {name for name in ZipFile(wheel).namelist() if name.endswith(".yaml")}
    conf = REPOSITORY / "conf"
    assert {
        f"cpt_residual/conf/{path.relative_to(conf)}" for path in conf.rglob("*.yaml")
    } <= shipped


def test_it_composes_from_the_installed_wheel(wheel: Path, tmp_path: Path) -> None:
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    run(
        sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps",
        "--target", site, wheel, cwd=elsewhere,
    )  # fmt: skip
    found = run(sys.executable, "-c", COMPOSE, cwd=elsewhere, PYTHONPATH=str(site))
    assert found.startswith(str(site))
    assert not list(elsewhere.iterdir())


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_it_plans_in_a_fresh_environment(wheel: Path, tmp_path: Path) -> None:
    """Minutes and 2 GB: a new environment with every dependency."""
    venv, elsewhere = tmp_path / "venv", tmp_path / "elsewhere"
    elsewhere.mkdir()
    run(sys.executable, "-m", "venv", venv, cwd=elsewhere)
    constraints = REPOSITORY / "constraints.txt"
    run(venv / "bin" / "pip", "install", "-q", "-c", constraints, wheel, cwd=elsewhere)
    run(venv / "bin" / "python", "-c", COMPOSE, cwd=elsewhere, PYTHONPATH="")
    planned = run(
        venv / "bin" / "python", "-m", "cpt_residual.plan", "+experiment=llama3_500m",
        cwd=elsewhere, PYTHONPATH="",
    )  # fmt: skip
    assert "base_cpt_residual" in planned
    run(venv / "bin" / "cpt-residual", "--help", cwd=elsewhere, PYTHONPATH="")

"""The peers of `weights.py`, each in a virtual environment of its own, and their commands."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from weights_family import Family

VERSIONS = {"residuals": "0.3.2", "mergekit": "0.1.5"}
TORCH = "torch==2.13.0"  # exactly, so that pip takes the same build for all
RESIDUALS_SCRIPT = Path(__file__).with_name("weights_residuals.py")
_OFFLINE = ["env", "HF_HUB_OFFLINE=1"]
_LIBRARIES = ("residuals", "mergekit", "torch", "transformers", "safetensors", "numpy")
_ASK_VERSIONS = (
    "import json; from importlib import metadata as m; "
    "print(json.dumps({d.metadata['Name'].lower(): d.version for d in m.distributions()}))"
)
MERGEKIT_SETTINGS: Mapping[str, list[str]] = {
    "one shard": ["--lazy-unpickle", "--quiet"],
    "shards of 1B, written asynchronously by 2 threads": [
        "--lazy-unpickle",
        "--quiet",
        "--out-shard-size",
        "1B",
        "--async-write",
        "--write-threads",
        "2",
    ],
}
"""Without a GPU mergekit's other options for speed and memory do nothing (`--low-cpu-memory` keeps
intermediate values on an accelerator)."""

Command = Callable[[Path], list[str]]
"""From the output folder to the command's arguments."""


def make_environments(folder: Path) -> None:
    """A virtual environment below `folder` for each peer; one that exists is brought up to date."""
    for name, version in VERSIONS.items():
        place = folder / name
        print(f"making {place} with {name}=={version} and {TORCH}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
        install = ["-m", "pip", "install", "-q", f"{name}=={version}", TORCH]
        subprocess.run([str(place / "bin" / "python"), *install], check=True)


@dataclass(frozen=True)
class Peers:
    """The environments below a folder; a peer without one is absent."""

    folder: Path | None

    def has(self, name: str) -> bool:
        return self.folder is not None and self._program(name, "python").is_file()

    @property
    def present(self) -> list[str]:
        return [name for name in VERSIONS if self.has(name)]

    def versions(self) -> dict[str, dict[str, str]]:
        """Versions of what matters in each environment."""
        found: dict[str, dict[str, str]] = {}
        for name in self.present:
            command = [str(self._program(name, "python")), "-c", _ASK_VERSIONS]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            known = json.loads(output)
            found[name] = {library: known[library] for library in _LIBRARIES if library in known}
        return found

    def residuals(self, verb: str, *models: Path, dtype: str) -> Command:
        """Models of compute: base, instruct; apply: target, stored residual; merge: target,
        base, instruct."""
        program = [
            *_OFFLINE,
            str(self._program("residuals", "python")),
            "-P",
            str(RESIDUALS_SCRIPT),
        ]
        return lambda out: [*program, verb, str(out), dtype, *map(str, models)]

    def mergekit(self, family: Family, scratch: Path) -> dict[str, Command]:
        """base + (instruct - base) + (base_cpt - base), in each of the settings."""
        recipe = scratch / f"mergekit-{family.base.parent.name}.yml"
        recipe.write_text(_mergekit_recipe(family))
        program = [*_OFFLINE, str(self._program("mergekit", "mergekit-yaml")), str(recipe)]

        def command(flags: list[str]) -> Command:
            return lambda out: [*program, str(out), *flags]

        return {name: command(flags) for name, flags in MERGEKIT_SETTINGS.items()}

    def _program(self, name: str, program: str) -> Path:
        assert self.folder is not None
        return self.folder.absolute() / name / "bin" / program


def _mergekit_recipe(family: Family) -> str:
    recipe = {
        "merge_method": "task_arithmetic",
        "base_model": str(family.base),
        "models": [
            {"model": str(model), "parameters": {"weight": 1.0}}
            for model in (family.instruct, family.base_cpt)
        ],
        "dtype": "bfloat16",
    }
    return json.dumps(recipe, indent=1) + "\n"  # JSON is YAML

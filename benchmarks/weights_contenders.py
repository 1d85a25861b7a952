"""Who takes part in `weights.py`: commands, what they read, what they need beforehand, and the
environments of peers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from harness import HERE, Command, Contender, make_environment
from weights_family import Family

ALPHAS = (0.25, 0.5, 0.75, 1.0)
OURS = ("compute", "apply", "direct", "four_alphas")
_COPIES = (  # how, threads, MiB at once
    ("cached", 4, 16),
    ("cached-direct", 4, 4),
    ("direct", 4, 16),
    ("direct", 8, 4),
)
_ORDER = (
    *("copy", "direct", "apply", "copy_four", "four_alphas", "compute"),
    *("mergekit", "residuals", "residuals_apply"),
)
_SLACK = 1 << 30


VERSIONS = {"residuals": "0.3.2", "mergekit": "0.1.5"}
TORCH = "torch==2.13.0"  # exactly, so that pip takes the same build for all
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
            str(HERE / "weights_residuals.py"),
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


def make_environments(folder: Path) -> None:
    """A virtual environment below `folder` for each peer."""
    for name, version in VERSIONS.items():
        make_environment(folder / name, [f"{name}=={version}", TORCH])


@dataclass(frozen=True)
class Stored:
    """A residual that some contender reads, computed before anything is measured."""

    folder: Path
    compute: Command
    num_bytes: int


Line = tuple[list[Contender], list[Stored]]


def cpt_residual_program() -> list[str]:
    """How a user starts ours: the script beside this interpreter."""
    script = Path(sys.executable).with_name("cpt-residual")
    return [str(script)] if script.is_file() else [sys.executable, "-m", "cpt_residual.cli"]


def limits(family: Family) -> list[Contender]:
    """Copies: reading three file sets and writing one, and writing four."""
    sets = (family.base_cpt, family.base, family.instruct)
    return [
        Contender(
            name=name,
            kind="limit",
            settings={
                f"{mode}, {threads} threads, blocks of {mib} MiB": _copy(
                    family, sets, num, (mode, str(threads), str(mib << 20))
                )
                for mode, threads, mib in _COPIES
            },
            reads=sets,
            written_bytes=num * family.size.num_bytes,
        )
        for name, num in (("copy", 1), ("copy_four", len(ALPHAS)))
    ]


def ours(family: Family, kept: Path) -> Line:
    """The program as a user runs it, without the check after writing that loads the model."""
    b, i, t = family.base, family.instruct, family.base_cpt
    one, four = family.size.num_bytes, len(ALPHAS) * family.size.num_bytes
    residual = kept / "ours"
    pair = [f"--base={b}", f"--instruct={i}"]
    compute = _ours(["compute", *pair])
    stored = [f"--target={t}", f"--residual={residual}", "--alpha=1.0", "--no-verify"]
    once = [f"--target={t}", *pair, "--alpha=1.0", "--no-verify"]
    several = [f"--target={t}", *pair, *(f"--alpha={a}" for a in ALPHAS), "--no-verify"]
    contenders = [
        Contender("compute", "ours", {"fp32 residual": compute}, (b, i), 2 * one),
        Contender(
            "apply", "ours", {"": _ours(["apply", *stored])}, (residual, t), one, merges=True
        ),
        Contender("direct", "ours", {"": _ours(["apply", *once])}, (b, i, t), one, merges=True),
        Contender(
            "four_alphas", "ours", {"": _ours(["apply", *several])}, (b, i, t), four, merges=True
        ),
    ]
    return contenders, [Stored(residual, compute, 2 * one)]


RESIDUALS_DTYPE = "bfloat16"  # its documented float32 writes twice the bytes


def ours_with_check(family: Family) -> Contender:
    """Direct apply with the check that loads the written model and shows that it stops."""
    pair = [f"--base={family.base}", f"--instruct={family.instruct}"]
    command = _ours(["apply", f"--target={family.base_cpt}", *pair, "--alpha=1.0"])
    reads = (family.base, family.instruct, family.base_cpt)
    return Contender("direct_checked", "ours", {"": command}, reads, family.size.num_bytes)


def peers(family: Family, kept: Path, environments: Peers) -> Line:
    """mergekit, and `residuals` in bf16, in which it is fastest: from the three models, as direct
    is, and from a stored residual, as apply is."""
    contenders: list[Contender] = []
    stored: list[Stored] = []
    b, i, t = family.base, family.instruct, family.base_cpt
    one = family.size.num_bytes
    if environments.has("mergekit"):
        settings = environments.mergekit(family, kept)
        contenders.append(Contender("mergekit", "peer", settings, (b, i, t), one, merges=True))
    if environments.has("residuals"):
        merge = environments.residuals("merge", t, b, i, dtype=RESIDUALS_DTYPE)
        contenders.append(
            Contender("residuals", "peer", {RESIDUALS_DTYPE: merge}, (b, i, t), one, merges=True)
        )
        residual = kept / "residuals"
        compute = environments.residuals("compute", b, i, dtype=RESIDUALS_DTYPE)
        apply = environments.residuals("apply", t, residual, dtype=RESIDUALS_DTYPE)
        size = 5 * one // 4  # with a second copy of the tied embeddings
        stored.append(Stored(residual, compute, size))
        contenders.append(
            Contender(
                "residuals_apply", "peer", {RESIDUALS_DTYPE: apply}, (residual, t), one, merges=True
            )
        )
    return contenders, stored


def everybody(family: Family, kept: Path, environments: Peers) -> Line:
    """All that can run here. What is compared runs one after the other: the speed of a shared disk
    moves within minutes by a third."""
    own, stored = ours(family, kept)
    others, of_others = peers(family, kept, environments)
    line = [*limits(family), *own, *others]
    return sorted(line, key=lambda each: _ORDER.index(each.name)), [*stored, *of_others]


def only(names: tuple[str, ...], line: Line) -> Line:
    """The contenders of these names (all without names), and the residuals that they read."""
    contenders = [item for item in line[0] if not names or item.name in names]
    read = {folder for contender in contenders for folder in contender.reads}
    return contenders, [item for item in line[1] if item.folder in read]


def needed_bytes(line: Line) -> int:
    """Room for the stored residuals and the largest output."""
    contenders, stored = line
    largest = max((contender.written_bytes for contender in contenders), default=0)
    return largest + sum(item.num_bytes for item in stored) + _SLACK


def _ours(arguments: list[str]) -> Command:
    start = [*cpt_residual_program(), *arguments]
    return lambda out: [*start, f"--out={out}"]


def _copy(family: Family, sets: tuple[Path, ...], num: int, how: tuple[str, str, str]) -> Command:
    def command(out: Path) -> list[str]:
        outs = [out / str(number) for number in range(num)]
        lists = ["\n".join(map(str, items)) for items in (family.shards, sets, outs)]
        interpreter = [sys.executable, "-I", "-S", str(HERE / "weights_copy.py")]
        return [*interpreter, *how, *lists]

    return command


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

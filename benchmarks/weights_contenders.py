"""Who takes part in `weights.py`: commands, what they read, and what they need beforehand."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from weights_family import Family
from weights_peers import Command, Peers

ALPHAS = (0.25, 0.5, 0.75, 1.0)
COPY = Path(__file__).with_name("weights_copy.py")
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


@dataclass(frozen=True)
class Contender:
    """One measured program. Of several `settings` the fastest is found first, then used.

    `merges`: it writes a merged model, whose elements can be checked.
    """

    name: str
    kind: Literal["limit", "ours", "peer"]
    settings: Mapping[str, Command]
    reads: tuple[Path, ...]
    written_bytes: int
    merges: bool = False


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
        Contender("four_alphas", "ours", {"": _ours(["apply", *several])}, (b, i, t), four),
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


def in_order(contenders: Sequence[Contender]) -> list[Contender]:
    """What is compared runs one after the other: the speed of a shared disk moves within minutes
    by a third."""
    return sorted(contenders, key=lambda contender: _ORDER.index(contender.name))


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


def fresh(folder: Path) -> Path:
    """The folder's path, with nothing there."""
    if folder.exists():
        shutil.rmtree(folder)
    return folder


def _ours(arguments: list[str]) -> Command:
    start = [*cpt_residual_program(), *arguments]
    return lambda out: [*start, f"--out={out}"]


def _copy(family: Family, sets: tuple[Path, ...], num: int, how: tuple[str, str, str]) -> Command:
    def command(out: Path) -> list[str]:
        outs = [out / str(number) for number in range(num)]
        lists = ["\n".join(map(str, items)) for items in (family.shards, sets, outs)]
        interpreter = [sys.executable, "-I", "-S", str(COPY)]
        return [*interpreter, *how, *lists]

    return command

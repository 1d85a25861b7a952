"""Results of the checks of an inspection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from cpt_residual.base_model import Frozen
from cpt_residual.core.artifact import MANIFEST, Manifest, check_files

CheckState = Literal["agrees", "differs", "not checked"]
_SHOWN = 8


class Check(Frozen):
    """detail: what was compared, or each value that differs, or why nothing was compared."""

    name: str
    state: CheckState
    detail: str


def compared(name: str, found: Mapping[str, int], recorded: Mapping[str, int]) -> Check:
    """Counts from the files beside those of a ledger, by name; names that only one side has are
    not compared."""
    both = [key for key in recorded if key in found]
    if not both:
        return Check(name=name, state="not checked", detail="the ledger has none of these counts")
    wrong = [
        f"{key}: {found[key]:,} in the files, {recorded[key]:,} in the ledger"
        for key in both
        if found[key] != recorded[key]
    ]
    if wrong:
        return Check(name=name, state="differs", detail=some(wrong))
    return Check(name=name, state="agrees", detail=", ".join(both))


def manifest_check(artifact: Path, manifest: Manifest | None, *, verify: bool) -> Check:
    """The files beside their manifest: `verify` reads and hashes every byte."""
    name = "files are those of the manifest"
    if manifest is None:
        return Check(
            name=name,
            state="not checked",
            detail=f"no {MANIFEST}: not a published artifact, or a copy without its manifest",
        )
    if not verify:
        return Check(name=name, state="not checked", detail="--verify hashes every file")
    problems, _ = check_files(artifact, manifest, {})
    if problems:
        return Check(name=name, state="differs", detail=some(problems))
    return Check(name=name, state="agrees", detail=f"sha256 of {len(manifest.files)} files")


def some(lines: Sequence[str]) -> str:
    """The first few of `lines` in one."""
    more = f" (and {len(lines) - _SHOWN} more)" if len(lines) > _SHOWN else ""
    return "; ".join(lines[:_SHOWN]) + more

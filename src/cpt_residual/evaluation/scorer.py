"""Identity of the scoring code: a hash over our task sources and lm-eval's version."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

from cpt_residual.config.suites import SuiteBase

_SUFFIXES = (".py", ".yaml", ".yml")


def harness_version() -> str:
    """Version of lm-eval, read without importing it."""
    return version("lm_eval")


def own_scorer_sha256(suites: Iterable[SuiteBase]) -> str:
    """Hash of what scores the own tasks of `suites`, whatever their order."""
    kinds = {type(suite).__name__: type(suite) for suite in suites}
    own = [path for name in sorted(kinds) for path in kinds[name].scorer_files()]
    folder = Path(__file__).parent
    shared = ("aggregation.py", "documents.py", "responses.py")
    return hash_sources([*own, *(folder / name for name in shared)])


def hash_sources(roots: Iterable[Path]) -> str:
    """sha256 over names (relative to each root) and bytes of all sources below `roots`."""
    digest = hashlib.sha256()
    for root in roots:
        files = [root] if root.is_file() else sorted(root.rglob("*"), key=lambda f: f.as_posix())
        for file in files:
            if file.is_file() and file.suffix in _SUFFIXES:
                digest.update(file.relative_to(root.parent).as_posix().encode("utf-8") + b"\0")
                digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()

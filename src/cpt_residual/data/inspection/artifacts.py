"""Artifacts of data on disk: their kind, and the tokenizer of a pack."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from cpt_residual.core.artifact import Manifest
from cpt_residual.data.documents.file_names import DOCUMENTS_FILE, LEDGER_FILE
from cpt_residual.errors import ArtifactError

DataKind = Literal["pack", "corpus", "world"]

PACK_FILES = ("pack.json", "ids.npy", "flags.npy")


def tokenizer_of(pack: Path, manifest: Manifest | None) -> Path | None:
    """The model directory that the manifest of a pack names as its tokenizer, if it is still in the
    store: the folder two levels up. Whether it is the right one is for its token map to show."""
    record = manifest.inputs.get("tokenizer") if manifest else None
    if record is None:
        return None
    store = pack.resolve().parent.parent
    return next(iter(sorted(store.glob(f"*/{record.fingerprint[:16]}"))), None)


def kind_of(path: Path, manifest: Manifest | None) -> DataKind:
    """What lies in `path`, by its files. Raises ArtifactError when it is nothing of ours."""
    if not path.is_dir():
        raise ArtifactError(
            f"{path} is not a folder",
            problems=["a file" if path.exists() else "no such file or folder"],
            remedy="Give the folder of a pack or of a corpus: what holds pack.json or ledger.json.",
        )
    if any((path / name).exists() for name in PACK_FILES):
        return "pack"
    if (path / LEDGER_FILE).is_file() and (path / DOCUMENTS_FILE).is_file():
        return "corpus"
    if manifest is not None and manifest.stage == "world":
        return "world"
    names = sorted(entry.name for entry in path.iterdir())
    listed = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    what = f"artifact of stage {manifest.stage}" if manifest else "no manifest"
    raise ArtifactError(
        f"{path} is neither a pack nor a corpus",
        problems=[f"{what}; it holds {listed or 'nothing'}"],
        remedy=f"A pack has {', '.join(PACK_FILES)}; a corpus {DOCUMENTS_FILE} and {LEDGER_FILE}."
        " `cpt-residual inspect` looks at models and residuals.",
    )

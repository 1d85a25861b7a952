"""What an artifact was made from, as far as its store still has it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cpt_residual.base_model import Frozen
from cpt_residual.core.artifact import Manifest
from cpt_residual.data.file_names import LEDGER_FILE
from cpt_residual.data.filters.ledger import FilterLedger
from cpt_residual.data.inspection.balance import filters_of, read_corpus_ledger
from cpt_residual.data.inspection.looking import read_manifest


@dataclass(frozen=True)
class Lineage:
    """An artifact's folder, its manifest if it has one, and the store that it lies in, if any."""

    path: Path
    manifest: Manifest | None
    store: Path | None

    @classmethod
    def of(cls, path: Path) -> Lineage:
        """Looks for the store where a published artifact has it: two folders up. Raises
        CorruptArtifactError for a manifest that cannot be trusted."""
        manifest = read_manifest(path)
        folder = path.resolve()
        published = manifest is not None and folder.parent.name == manifest.stage
        return cls(path, manifest, folder.parent.parent if published else None)

    def input(self, role: str) -> Path | None:
        """The folder of an input, or None when it is not in the store (any more)."""
        record = self.manifest.inputs.get(role) if self.manifest else None
        if record is None or self.store is None:
            return None
        found = sorted(self.store.glob(f"*/{record.fingerprint[:16]}"))
        return next((folder for folder in found if self._is(folder, record.fingerprint)), None)

    @staticmethod
    def _is(folder: Path, fingerprint: str) -> bool:
        try:
            manifest = Manifest.read(folder)
        except ValueError:
            return False
        return manifest is not None and manifest.fingerprint == fingerprint


class SourceCorpus(Frozen):
    """The corpus of one source of a pack. path: None when it is not in the store; filters: what was
    done to its documents, in order."""

    corpus: str
    path: str | None
    filters: tuple[FilterLedger, ...]


def corpora_of(lineage: Lineage, names: Sequence[str]) -> Iterator[SourceCorpus]:
    """The corpora of a pack's sources `names`, in their order."""
    for number, name in enumerate(names):
        folder = lineage.input(f"source_{number}")
        filters: tuple[FilterLedger, ...] = ()
        if folder is not None and (folder / LEDGER_FILE).is_file():
            filters = filters_of(read_corpus_ledger(folder), folder)
        yield SourceCorpus(corpus=name, path=str(folder) if folder else None, filters=filters)

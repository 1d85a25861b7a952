"""The manifest (identity) and the receipt (how it was built) of an artifact."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from pydantic import JsonValue, ValidationError

from cpt_residual.base_model import Frozen
from cpt_residual.core.files import list_files
from cpt_residual.core.hashing import FileRecord, canonical_json, file_sha256, text_sha256
from cpt_residual.core.stage import Metric
from cpt_residual.core.validation import field_problems

MANIFEST = "manifest.json"
RECEIPT = "receipt.json"


class InputRecord(Frozen):
    """An input as it was read: what it should be (fingerprint) and what it was (content)."""

    fingerprint: str
    content_hash: str


class Manifest(Frozen):
    """What an artifact is. Deterministic: the same build gives the same manifest anywhere.

    `seal` is the hash of everything else in it, so that an edit of the manifest itself shows.
    """

    schema_version: Literal[1] = 1
    stage: str
    stage_version: int
    node: str
    fingerprint: str
    recipe: JsonValue
    inputs: dict[str, InputRecord]
    files: dict[str, FileRecord]
    metrics: dict[str, Metric]
    content_hash: str
    seal: str = ""

    def sealed(self) -> Manifest:
        """The same manifest with its seal."""
        return self.model_copy(update={"seal": self.computed_seal()})

    def computed_seal(self) -> str:
        """Hash of all fields but the seal."""
        return text_sha256(canonical_json(self.model_copy(update={"seal": ""})))

    @property
    def size_bytes(self) -> int:
        return sum(record.size for record in self.files.values())

    @classmethod
    def read(cls, artifact: Path) -> Manifest | None:
        """The manifest in an artifact's directory, None when there is none.

        ValueError, in one line for people, when it is not one of ours or was edited."""
        try:
            manifest = cls.model_validate_json((artifact / MANIFEST).read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise ValueError(f"it cannot be read: {error.strerror}") from error
        except ValidationError as error:
            first, *others = field_problems(error)
            more = f" (and {len(others)} more)" if others else ""
            raise ValueError(f"it is cut, edited or of another version: {first}{more}") from error
        computed = manifest.computed_seal()
        if computed != manifest.seal:
            raise ValueError(f"{MANIFEST}: sha256 {computed}, sealed as {manifest.seal}")
        return manifest


class FileStamp(Frozen):
    """Size and time of a file when its hash was last known to be right."""

    size: int
    mtime_ns: int


class Receipt(Frozen):
    """How a build went: measured, different every time, outside of every hash.

    seconds: wall time of build and publish; peak_rss_bytes: of the building process so far;
    peak_rss_bytes_child: of the largest process it started (training ranks), 0 if none;
    cores: processors this process may use; threads: torch threads; stamps: for the quick check.
    """

    started: str
    seconds: float
    host: str
    pid: int
    cores: int
    threads: int
    peak_rss_bytes: int
    peak_rss_bytes_child: int
    code_version: str
    libraries: dict[str, str]
    stamps: dict[str, FileStamp]

    @classmethod
    def read(cls, artifact: Path) -> Receipt | None:
        """The receipt in an artifact's directory; None when absent or unreadable.

        Nothing depends on it but the speed of the quick check."""
        try:
            return cls.model_validate_json((artifact / RECEIPT).read_bytes())
        except (FileNotFoundError, NotADirectoryError, ValidationError):
            return None


def stamp_of(path: Path) -> FileStamp:
    """Size and modification time of a file, links followed."""
    stat = path.stat()
    return FileStamp(size=stat.st_size, mtime_ns=stat.st_mtime_ns)


def check_files(
    artifact: Path,
    manifest: Manifest,
    stamps: Mapping[str, FileStamp],
    *,
    sha256: Callable[[Path], str] = file_sha256,
) -> tuple[list[str], dict[str, FileStamp]]:
    """Compare an artifact's files with its manifest: all problems, and fresh stamps of the rest.

    A file whose size and time are those of its stamp is taken as unchanged; every other file is
    hashed by `sha256` (pass no stamps to hash all). Missing and additional files are problems too:
    an additional file can change what a library loads.
    """
    listing = list_files(artifact)
    found = {name: path for name, path in listing.files.items() if name not in (MANIFEST, RECEIPT)}
    problems = [f"{name}: neither file nor directory" for name in sorted(listing.others)]
    fresh: dict[str, FileStamp] = {}
    for name, record in manifest.files.items():
        if name not in found:
            problems.append(f"{name}: missing, recorded sha256 {record.sha256}")
            continue
        stamp = stamp_of(found[name])
        if stamp != stamps.get(name) or stamp.size != record.size:
            actual = sha256(found[name])
            if actual != record.sha256:
                sizes = f"{stamp.size:,} bytes, recorded {record.size:,}"
                problems.append(
                    f"{name}: sha256 {actual}, recorded sha256 {record.sha256} ({sizes})"
                )
                continue
        fresh[name] = stamp
    problems.extend(
        f"{name}: not in the manifest, sha256 {file_sha256(path)}"
        for name, path in found.items()
        if name not in manifest.files
    )
    return problems, fresh

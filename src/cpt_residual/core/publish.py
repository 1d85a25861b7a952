"""Publish a finished `work/out/` as an artifact: hash, fsync, one atomic rename.

Before the rename nothing is published; after it everything is. There is no instant between.
"""

from __future__ import annotations

import errno
import math
from collections.abc import Mapping
from pathlib import Path

from cpt_residual.core.artifact import (
    MANIFEST,
    RECEIPT,
    FileStamp,
    InputRecord,
    Manifest,
    stamp_of,
)
from cpt_residual.core.files import (
    Listing,
    list_files,
    sync_directory,
    sync_file,
    write_json_atomic,
)
from cpt_residual.core.hashing import FileRecord, content_hash, file_sha256, plain
from cpt_residual.core.measure import Stopwatch
from cpt_residual.core.stage import ArtifactRef, Metrics, Node
from cpt_residual.core.store import Store
from cpt_residual.errors import ArtifactError, WorkerError

_TAKEN = (errno.EEXIST, errno.ENOTEMPTY)


def publish(
    store: Store,
    node: Node,
    *,
    inputs: Mapping[str, ArtifactRef],
    metrics: Metrics,
    watch: Stopwatch,
) -> ArtifactRef:
    """Publish `store.work_of(node)/out` as the artifact of `node` and return it.

    When another process was first, its artifact stays and is returned; ours is dropped.
    """
    out = store.work_of(node) / "out"
    listing = _checked_listing(node, out)
    _check_metrics(node, metrics)
    stamps = {name: stamp_of(path) for name, path in listing.files.items()}
    files = {name: _record(store, listing, name, stamps[name]) for name in listing.files}
    _force_to_disk(listing)
    _check_unchanged(node, listing, stamps)
    manifest = Manifest(
        stage=node.stage.name,
        stage_version=node.stage.version,
        node=node.stage.node,
        fingerprint=node.fingerprint,
        recipe=plain(node.stage.recipe()),
        inputs={
            role: InputRecord(fingerprint=ref.fingerprint, content_hash=ref.content_hash)
            for role, ref in inputs.items()
        },
        files=files,
        metrics=metrics,
        content_hash=content_hash(files),
    ).sealed()
    write_json_atomic(out / RECEIPT, watch.receipt(stamps))
    write_json_atomic(out / MANIFEST, manifest)
    if _move_into_place(store, node, out):
        store.mark_verified(node, manifest)
    return store.reference(node)


def _checked_listing(node: Node, out: Path) -> Listing:
    listing = list_files(out) if out.is_dir() else Listing()
    problems = [f"{name}: neither file nor directory" for name in sorted(listing.others)]
    if listing.links and not getattr(node.stage, "links_allowed", False):
        problems += [f"{name}: a link, but files must be copied" for name in sorted(listing.links)]
    problems += [
        f"{name}: a reserved name" for name in (MANIFEST, RECEIPT) if name in listing.files
    ]
    if not listing.files:
        problems.append("it wrote no files")
    if problems:
        raise WorkerError(f"{node.stage.node} cannot be published", problems=problems)
    return listing


def _check_metrics(node: Node, metrics: Metrics) -> None:
    bad = [
        f"{name} = {value}"
        for name, value in metrics.items()
        if isinstance(value, float) and not math.isfinite(value)
    ]
    if bad:
        raise WorkerError(
            f"{node.stage.node} ended with numbers that are not finite",
            problems=bad,
            remedy="Nothing was published. A loss that is not finite often means a learning rate "
            "that is too high.",
        )


def _record(store: Store, listing: Listing, name: str, stamp: FileStamp) -> FileRecord:
    path = listing.files[name]
    # Behind a link lies a large file outside the store whose hash is usually known already.
    sha256 = store.hash_cache.sha256(path) if name in listing.links else file_sha256(path)
    return FileRecord(size=stamp.size, sha256=sha256)


def _force_to_disk(listing: Listing) -> None:
    for name, path in listing.files.items():
        if name not in listing.links:
            sync_file(path)
    for folder in listing.directories:
        sync_directory(folder)


def _check_unchanged(node: Node, listing: Listing, stamps: Mapping[str, FileStamp]) -> None:
    changed = [name for name, path in listing.files.items() if stamp_of(path) != stamps[name]]
    if changed:
        raise WorkerError(
            f"files of {node.stage.node} changed while they were being published",
            problems=changed,
            remedy="Nothing was published. Something still writes to them.",
        )


def _move_into_place(store: Store, node: Node, out: Path) -> bool:
    """True: ours is published. False: another process's artifact was there first."""
    final = store.path_of(node)
    if not final.parent.exists():
        final.parent.mkdir(parents=True, exist_ok=True)
        sync_directory(store.root)
    try:
        out.rename(final)
    except OSError as error:
        if error.errno not in _TAKEN:
            raise
        if store.manifest(node) is not None:
            store.discard(out)
            return False
        _require_no_manifest(final)
        store.discard(final)  # never published by us: a directory alone means nothing
        out.rename(final)
    sync_directory(final.parent)
    return True


def _require_no_manifest(final: Path) -> None:
    if (final / MANIFEST).exists():
        raise ArtifactError(
            f"{final} appeared while it was being built and its manifest cannot be read",
            remedy=f"Delete it (rm -r {final}) and run the same command again.",
        )

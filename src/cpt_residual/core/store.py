"""The artifact store: location, state and verified opening of artifacts.

<root>/<stage>/<fingerprint[:16]>/   published, immutable; manifest.json and receipt.json inside
<root>/.work/<stage>-<fingerprint[:16]>/   scratch that survives a kill (checkpoints, `out/`)
<root>/.lock/  <root>/.cache/  <root>/.trash/
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cpt_residual.core.artifact import (
    RECEIPT,
    FileStamp,
    Manifest,
    Receipt,
    check_files,
)
from cpt_residual.core.disk import format_bytes
from cpt_residual.core.files import remove_tree, write_json_atomic
from cpt_residual.core.graph import Graph
from cpt_residual.core.hashing import HashCache, file_sha256
from cpt_residual.core.lock import describe_holder, hold
from cpt_residual.core.stage import ArtifactRef, Node
from cpt_residual.errors import ArtifactError, CorruptArtifactError, StaleArtifactError

State = Literal["ready", "missing", "stale", "corrupt", "busy"]
VERIFIED_FOLDER = "verified"
"""Of a run: hashes that its processes share. Of no use once it has ended."""

_STAGE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_\-]*")
_ERRORS: Mapping[State, type[ArtifactError]] = {
    "missing": ArtifactError,
    "stale": StaleArtifactError,
    "corrupt": CorruptArtifactError,
}


@dataclass(frozen=True)
class NodeStatus:
    """State of a node's artifact. `reason` is one line; `problems` has one line per finding.

    ready: published, files and inputs as recorded; missing: nothing published; stale: an input
    has other content than the one that was read; corrupt: the files are not those recorded;
    busy: missing, and another process builds it.
    """

    state: State
    reason: str
    problems: tuple[str, ...] = ()


class Store:
    """Artifacts below `root`, addressed by fingerprint. Making one touches nothing on the disk.

    Keep one Store per process: it remembers which artifacts it has read and verified in full. Those
    of the processes of one run, which is kept in the folder `run`, share what they have hashed.
    """

    def __init__(self, root: Path, *, run: Path | None = None) -> None:
        self.root = root.absolute()
        self._run_hashes = HashCache(run / VERIFIED_FOLDER) if run else None
        self.hash_cache = HashCache(self.root / ".cache" / "sha256")
        self._verified: set[tuple[Path, str]] = set()

    # --- places ----------------------------------------------------------------------------------
    def path_of(self, node: Node) -> Path:
        """Where the artifact lies once it is published."""
        return self.root / node.stage.name / node.fingerprint[:16]

    def work_of(self, node: Node) -> Path:
        """Scratch of the build; published files are written to `out/` below it."""
        return self.root / ".work" / _key(node)

    def lock_path_of(self, key: str) -> Path:
        return self.root / ".lock" / f"{key}.lock"

    def lock(self, node: Node) -> AbstractContextManager[None]:
        """Be the only builder of a node; BusyError naming the holder otherwise."""
        return hold(self.lock_path_of(_key(node)), name=node.stage.node)

    def discard(self, path: Path) -> None:
        """Remove something below the root so that a kill leaves no half of it in place."""
        remove_tree(path, self.root / ".trash")

    # --- state -----------------------------------------------------------------------------------
    def status(self, graph: Graph, node: Node | str, *, deep: bool = False) -> NodeStatus:
        """State of a node's artifact.

        Quick: compares size and time of every file with the receipt and hashes the files that
        differ. `deep` hashes all files, and so also sees an edit whose time was set back.
        """
        node = graph[node] if isinstance(node, str) else node
        found = self.status_unlocked(graph, node, sha256=file_sha256 if deep else None)
        if found.state != "missing":
            return found
        holder = self.holder(node)
        return NodeStatus("busy", f"built right now by {holder}") if holder else found

    def status_unlocked(
        self, graph: Graph, node: Node, *, sha256: Callable[[Path], str] | None = None
    ) -> NodeStatus:
        """As `status`, for the holder of the lock: never `busy`. `sha256` hashes all files."""
        path = self.path_of(node)
        try:
            manifest = Manifest.read(path)
        except ValueError as error:
            return _corrupt(node, [f"manifest.json cannot be trusted: {error}"])
        if manifest is None:
            return NodeStatus("missing", _why_missing(path))
        if (manifest.stage, manifest.fingerprint) != (node.stage.name, node.fingerprint):
            found = f"{manifest.stage} {manifest.fingerprint}"
            expected = f"{node.stage.name} {node.fingerprint}"
            return _corrupt(node, [f"manifest.json is of {found}, expected {expected}"])
        problems = self._check(path, manifest, sha256)
        if problems:
            return _corrupt(node, problems)
        if sha256:
            self._verified.add((path, manifest.seal))
        changed = self._changed_inputs(graph, node, manifest)
        if changed:
            return NodeStatus("stale", f"an input of {node.stage.node} has changed", changed)
        return NodeStatus("ready", _why_ready(manifest))

    def _check(
        self, path: Path, manifest: Manifest, sha256: Callable[[Path], str] | None
    ) -> list[str]:
        receipt = Receipt.read(path)
        stamps: Mapping[str, FileStamp] = receipt.stamps if receipt else {}
        known = {} if sha256 else stamps
        problems, fresh = check_files(path, manifest, known, sha256=sha256 or file_sha256)
        if receipt and not problems and fresh != stamps:
            # The store was copied or files were touched: spare the next check the reading.
            restamped = receipt.model_copy(update={"stamps": fresh})
            with contextlib.suppress(OSError):  # read-only store: it will be read again
                cache = self.root / ".cache"
                write_json_atomic(path / RECEIPT, restamped, temporary_in=cache)
        return problems

    def _changed_inputs(self, graph: Graph, node: Node, manifest: Manifest) -> tuple[str, ...]:
        """Inputs whose published content is not what this artifact was made from.

        An input that is missing or unreadable now says nothing: its own status does."""
        changed: list[str] = []
        for role, source in graph.inputs_of(node).items():
            recorded = manifest.inputs[role].content_hash
            present = self.manifest(source)
            if present is not None and present.content_hash != recorded:
                changed.append(
                    f"{role} ({source.stage.node}): content {present.content_hash} now, "
                    f"{recorded} when {node.stage.node} was built from it"
                )
        return tuple(changed)

    # --- contents --------------------------------------------------------------------------------
    def manifest(self, node: Node) -> Manifest | None:
        """The manifest of a published artifact, None when there is none that can be trusted."""
        try:
            return Manifest.read(self.path_of(node))
        except ValueError:
            return None

    def receipt(self, node: Node) -> Receipt | None:
        """How the artifact was built (time, memory, versions), None when unknown."""
        return Receipt.read(self.path_of(node))

    def open(self, graph: Graph, node: Node | str) -> ArtifactRef:
        """A verified artifact: every byte is read and hashed the first time in this process, or in
        its run. What changed since (size, times, inode) is hashed again.

        Raises ArtifactError (missing), StaleArtifactError or CorruptArtifactError."""
        node = graph[node] if isinstance(node, str) else node
        manifest = self.manifest(node)
        known = manifest is not None and (self.path_of(node), manifest.seal) in self._verified
        hashes = self._run_hashes
        sha256 = hashes.sha256 if hashes else file_sha256
        self.require_ready(
            node, self.status_unlocked(graph, node, sha256=None if known else sha256)
        )
        return self.reference(node)

    def reference(self, node: Node) -> ArtifactRef:
        """An artifact known to be ready, without looking at its files again."""
        manifest = self.manifest(node)
        if manifest is None:
            raise self._error(node, NodeStatus("missing", "nothing is published"))
        return ArtifactRef(
            stage=manifest.stage,
            node=node.stage.node,
            fingerprint=manifest.fingerprint,
            content_hash=manifest.content_hash,
            path=self.path_of(node),
            metrics=manifest.metrics,
        )

    def mark_verified(self, node: Node, manifest: Manifest) -> None:
        """This process has just read and hashed the artifact's files itself."""
        if self._run_hashes:
            for name, record in manifest.files.items():
                self._run_hashes.remember(self.path_of(node) / name, record.sha256)
        self._verified.add((self.path_of(node), manifest.seal))

    def holder(self, node: Node) -> str | None:
        """Who builds the node right now (`process N on HOST since ...`); None when nobody does."""
        return describe_holder(self.lock_path_of(_key(node)))

    def require_ready(self, node: Node, status: NodeStatus) -> None:
        """Raise the error of a state other than ready, with what to do about it."""
        if status.state != "ready":
            raise self._error(node, status)

    def require_usable(self, found: Iterable[tuple[Node, NodeStatus]]) -> None:
        """Raise one error that names every artifact that is stale or corrupt, or return."""
        bad = [(node, status) for node, status in found if status.state in ("stale", "corrupt")]
        if len(bad) == 1:
            raise self._error(*bad[0])
        if bad:
            kinds = {_ERRORS[status.state] for _, status in bad}
            kind = kinds.pop() if len(kinds) == 1 else ArtifactError
            raise kind(
                f"{len(bad)} artifacts cannot be used",
                problems=[_state_line(node, status) for node, status in bad],
                remedy="Their files are not those recorded (corrupt), or an input of theirs has "
                "changed (stale). Delete them and run the same command again to build them anew:\n"
                + "\n".join(f"  rm -r {self.path_of(node)}" for node, _ in bad),
            )

    def _error(self, node: Node, status: NodeStatus) -> ArtifactError:
        path = self.path_of(node)
        remedies: Mapping[State, str] = {
            "missing": f"Run the stage that makes it first; it is looked for at {path}.",
            "stale": "Its files no longer belong to these inputs, so it is not used. Delete it "
            f"(rm -r {path}) and run the same command again to build it from the present input.",
            "corrupt": "It is not used. Delete it "
            f"(rm -r {path}) and run the same command again to build it anew.",
        }
        return _ERRORS[status.state](
            f"artifact {_label(node)} is {status.state}",
            problems=status.problems or (status.reason,),
            remedy=remedies[status.state],
        )


def _key(node: Node) -> str:
    assert _STAGE_NAME.fullmatch(node.stage.name), f"stage name '{node.stage.name}' is no file name"
    return f"{node.stage.name}-{node.fingerprint[:16]}"


def _label(node: Node) -> str:
    return f"{node.stage.node} ({node.fingerprint[:8]})"


def _state_line(node: Node, status: NodeStatus) -> str:
    """`evaluate:base (1cb2c4af) is corrupt: extra.txt: not in the manifest (and 2 more)`."""
    first, *others = status.problems or (status.reason,)
    more = f" (and {len(others)} more)" if others else ""
    return f"{_label(node)} is {status.state}: {first}{more}"


def _corrupt(node: Node, problems: list[str]) -> NodeStatus:
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return NodeStatus("corrupt", f"{node.stage.node}: {problems[0]}{more}", tuple(problems))


def _why_missing(path: Path) -> str:
    if path.exists():
        return f"{path} has no manifest: it was never published and will be replaced"
    return "not built yet"


def _why_ready(manifest: Manifest) -> str:
    count = len(manifest.files)
    files = "1 file" if count == 1 else f"{count} files"
    return f"same recipe and inputs, {files} as recorded ({format_bytes(manifest.size_bytes)})"

"""The files that work reads, and whether they are still what they were when it began."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cpt_residual.core.files import FileState, file_state
from cpt_residual.core.hashing import canonical_json, text_sha256
from cpt_residual.errors import ArtifactError
from cpt_residual.modeling.side_files import (
    CONFIG_FILE,
    GENERATION_FILE,
    carried_files,
    is_chat_file,
)
from cpt_residual.weights.io.checkpoint import Checkpoint


@dataclass(frozen=True)
class InputFiles:
    """Files by path, with size, both times of change and inode; None for a file that is not there.
    Contents are not read."""

    states: Mapping[Path, FileState | None]

    @classmethod
    def of(
        cls,
        models: Iterable[Checkpoint] = (),
        *,
        folders: Iterable[Path] = (),
        files: Iterable[Path] = (),
    ) -> InputFiles:
        """The shards of `models`, the small files of their directories and of `folders`, and
        `files`, as they are now."""
        models = tuple(models)
        places = [*(model.path for model in models), *folders]
        paths = [
            place / name
            for place in places
            for name in (CONFIG_FILE, GENERATION_FILE, *carried_files(place))
        ]
        paths += [shard.path for model in models for shard in model.shards]
        return cls({path: file_state(path) for path in (*paths, *files)})

    @property
    def folders(self) -> set[Path]:
        """The directories that they lie in."""
        return {path.parent for path in self.states}

    def deciding_weights(self) -> InputFiles:
        """Without the files that no weight of an output depends on: generation config, chat
        templates, processor configs. They may be repaired while its shards are kept."""
        kept = {
            path: state
            for path, state in self.states.items()
            if path.name != GENERATION_FILE and not is_chat_file(path.name)
        }
        return InputFiles(kept)

    def stamp(self, **purpose: object) -> str:
        """sha256 over the files' places and states, and what is made of them."""
        files = sorted([str(path.resolve()), *(state or ())] for path, state in self.states.items())
        return text_sha256(canonical_json({**purpose, "files": files}))

    def require_unchanged(self) -> None:
        """ArtifactError that names every file that is not what it was, or has come."""
        problems = [str(path) for path, state in self.states.items() if file_state(path) != state]
        models = {path.parent for path in self.states if path.name == GENERATION_FILE}
        there = (model / name for model in models for name in carried_files(model))
        problems += [str(path) for path in sorted(there) if path not in self.states]
        if problems:
            raise ArtifactError(
                "Inputs were changed while they were read",
                problems=problems,
                remedy="The old and the new would be mixed: no output was made. Run the same "
                "command again when nothing writes to them.",
            )

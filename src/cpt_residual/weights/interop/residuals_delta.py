"""A folder of the `residuals` package as a residual to merge."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from pydantic import JsonValue

from cpt_residual.errors import CompatibilityError
from cpt_residual.modeling.class_names import ClassNames
from cpt_residual.modeling.known_layouts import class_names
from cpt_residual.modeling.side_files import CONFIG_FILE, left_out_of, read_json_object
from cpt_residual.modeling.token_side import TokenSide
from cpt_residual.weights import kernels
from cpt_residual.weights.arithmetic import Raw, to_float32, to_float64
from cpt_residual.weights.checkpoint import Checkpoint
from cpt_residual.weights.compatibility import Side
from cpt_residual.weights.interop.residuals_package import OWN_FILE, ResidualsFolder
from cpt_residual.weights.kernels import MergeSums
from cpt_residual.weights.open_delta import High, Low, OpenDelta, add_parts
from cpt_residual.weights.reader import (
    DEFAULT_STREAMING,
    Block,
    ShardReader,
    Streaming,
    blocks_of,
    map_in_order,
)
from cpt_residual.weights.residual_format import INSTRUCT_FOLDER
from cpt_residual.weights.shard_header import TensorEntry
from cpt_residual.weights.vocabulary import Mean


@dataclass(frozen=True)
class PackageDelta:
    """A folder of the `residuals` package as a residual to merge (a delta.DeltaSource).

    It names no architecture and no end-of-text ids of base; without our second file the target's
    architecture is taken for it (names and shapes are still compared) and base's ids stay unknown.
    Make it with `package_delta`.
    """

    folder: ResidualsFolder
    target: Checkpoint

    @property
    def side(self) -> Side:
        own = self.folder.own
        facts = own.facts if own else self.target.facts
        shapes = {
            name: entry.shape
            for name, entry in self.folder.tensors.items()
            if not facts.tie_word_embeddings or name not in _aliases(self.folder, self.target)
        }
        return Side("residual", shapes, self._config, self._class_names.rows_by_name())

    @property
    def own_names(self) -> Mapping[str, str]:
        aliases = _aliases(self.folder, self.target)
        return {n: own for n, own in self._class_names.names.items() if n not in aliases}

    @property
    def tied(self) -> Mapping[str, str]:
        return self._class_names.tied

    def for_text(self, own_names: Mapping[str, str]) -> PackageDelta:
        del own_names  # its names are read as the target's
        return self

    @cached_property
    def _class_names(self) -> ClassNames:
        """As the target's class reads them: the folder has no config.json of a model."""
        facts = self.target.facts
        return class_names(
            self.target.path,
            self.folder.tensors,
            model_type=facts.model_type,
            tied=facts.tie_word_embeddings,
        )

    @property
    def _config(self) -> dict[str, JsonValue]:
        own = self.folder.path / INSTRUCT_FOLDER / CONFIG_FILE
        return read_json_object(own, "residual") if self.folder.own else self.target.config

    @property
    def tokens(self) -> TokenSide:
        return self._tokens

    @cached_property
    def _tokens(self) -> TokenSide:
        return TokenSide.read(self.instruct_side)

    @property
    def instruct_side(self) -> Path:
        """Instruct's own folder where we wrote one, else the tokenizer files alone."""
        own = self.folder.path / INSTRUCT_FOLDER
        return own if self.folder.own and own.is_dir() else self.folder.path

    @property
    def base_eos(self) -> Sequence[int | str]:
        own = self.folder.own
        if own is None:
            return ()
        return own.base.eos_token_ids if own.base.eos_tokens is None else own.base.eos_tokens

    @property
    def instruct_only(self) -> Sequence[int]:
        """Rows that base did not have. The residuals package adds them to base as zeros, which is
        the same, but does not say which they were."""
        return self.folder.own.instruct_only if self.folder.own else ()

    @property
    def files(self) -> Sequence[Path]:
        own = [self.folder.path / OWN_FILE] if self.folder.own else []
        config = self.folder.path / CONFIG_FILE
        return [config, *own, *(shard.path for shard in self.folder.shards)]

    @property
    def checkpoints(self) -> Sequence[Checkpoint]:
        return ()

    @property
    def recorded_norm(self) -> float | None:
        return None

    @property
    def left_out(self) -> Sequence[str]:
        own = self.folder.own
        return own.left_out if own else left_out_of(self.folder.path)

    @contextmanager
    def opened(self, *, once: bool = True) -> Generator[OpenDelta]:
        with ShardReader(self.folder.shards, once=once) as reader:
            yield _OpenPackage(self.folder, reader)


def package_delta(
    folder: ResidualsFolder, target: Checkpoint, *, streaming: Streaming = DEFAULT_STREAMING
) -> PackageDelta:
    """The folder as a residual for `target`. Raises CompatibilityError where a tied target's head
    and embedding have different residuals. Price: a read of both when the target is tied."""
    with ShardReader(folder.shards) as reader:
        for alias, owner in _aliases(folder, target).items():
            left, right = folder.tensors[alias], folder.tensors[owner]

            def same(block: Block, left: TensorEntry = left, right: TensorEntry = right) -> bool:
                one, other = (
                    reader.read(entry, block.start, block.stop) for entry in (left, right)
                )
                return np.array_equal(one, other)

            equal = left.shape == right.shape and left.dtype == right.dtype
            if not equal or not all(
                map_in_order(same, blocks_of([left]), threads=streaming.threads)
            ):
                raise CompatibilityError(
                    f"residual: {alias} is stored with other values than {owner}",
                    remedy="The target ties them (tie_word_embeddings), so it cannot take both.",
                )
    return PackageDelta(folder, target)


def _aliases(folder: ResidualsFolder, target: Checkpoint) -> dict[str, str]:
    """A head that repeats the embedding, where the target ties them."""
    stored = folder.tensors
    return {a: b for a, b in target.tied.items() if a in stored and b in stored}


class _OpenPackage:
    def __init__(self, folder: ResidualsFolder, reader: ShardReader) -> None:
        self._folder, self._reader = folder, reader

    def fetch(self, block: Block) -> None:
        self._reader.fetch(self._folder.tensors[block.name], block.start, block.stop)

    def parts(self, block: Block) -> tuple[High, Low | None]:
        return to_float64(self._read(block)), None

    def add(self, block: Block, target: Raw, alpha: float, out: Raw) -> MergeSums:
        if target.dtype == np.float16:
            return add_parts(target, self.parts(block), alpha, out)
        return kernels.add(target, to_float32(self._read(block)), alpha, out)

    def by_role(self, block: Block) -> Mapping[str, Raw]:
        return {"residual": self._read(block)}

    def base_mean(self, name: str) -> Mean:
        raise CompatibilityError(
            f"residual: {self._folder.path} does not keep base's mean row of {name}",
            remedy="The layout of the residuals package has no place for it. Use "
            "new_token_rows=instruct_row, or merge from the residual or from base and instruct.",
        )

    def _read(self, block: Block) -> Raw:
        entry = self._folder.tensors[block.name]
        return self._reader.read_reusing(entry, block.start, block.stop)

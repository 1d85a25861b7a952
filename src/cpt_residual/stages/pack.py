"""Token ids ready for training: documents, masks and an exact token budget."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from cpt_residual.base_model import Frozen
from cpt_residual.config.packs import Pack
from cpt_residual.core.rates import ENCODED_TOKENS_PER_SECOND_AND_CORE, PACK_MEMORY
from cpt_residual.core.stage import ArtifactRef, Cost, Metrics, Resources, RunContext, Stage
from cpt_residual.errors import ConfigError, CorpusError
from cpt_residual.modeling.encoding_limits import (
    ENCODING_BYTES_PER_CHARACTER,
    MAX_UNDIVIDED_CHARACTERS,
)
from cpt_residual.stages.inputs import CorpusInput
from cpt_residual.stages.world import World

if TYPE_CHECKING:
    from cpt_residual.data.packing.build import DocumentSource, PackLedger, PackPlan
    from cpt_residual.modeling.tokenizer import Tokenizer

_BYTES_PER_TOKEN = 5  # uint32 id + uint8 flags
_SCRATCH_BYTES_PER_TOKEN = 5  # ids that wait in token files, and those encoded ahead
_PARALLEL_TOKENS = 4_000_000
"""From here on it pays to have processes that encode; to begin anew takes longer than seconds."""
_PADDED_ROWS = 1.1


class PackSourceRecipe(Frozen):
    """One source; `documents` is the file inside the input artifact."""

    corpus: str
    documents: str
    share: float | None  # None with phases, which say the shares
    format: Literal["text", "chat"]
    packing: Literal["concat_chunk", "best_fit"]
    max_epochs: int | None = Field(serialization_alias="max_passes")


class PackPhaseRecipe(Frozen):
    """One phase; `shares` in the order of the sources."""

    share: float
    shares: tuple[float, ...]


class PackRecipe(Frozen):
    """Tokenizer, template and documents themselves are inputs, known by their fingerprints."""

    sequence_length: int
    token_budget: int
    repeat: bool
    sources: tuple[PackSourceRecipe, ...]
    phases: tuple[PackPhaseRecipe, ...]
    seed: int


@dataclass(frozen=True)
class PackStage:
    """One pack. `tokenizer`: the model whose tokenizer encodes; `template`: the model whose chat
    template renders dialogues (None when no source is chat); `sources` in the order of
    `pack.sources`."""

    key: str
    pack: Pack
    tokenizer: Stage
    template: Stage | None
    sources: tuple[CorpusInput, ...]
    seed: int
    available_cores: int = 1

    name: ClassVar[str] = "pack"
    version: ClassVar[int] = 3  # the ledger counts added tokens

    @property
    def node(self) -> str:
        return f"pack:{self.key}"

    @property
    def has_chat(self) -> bool:
        """Whether a template is needed."""
        return any(source.format == "chat" for source in self.pack.sources)

    def recipe(self) -> PackRecipe:
        return PackRecipe(
            sequence_length=self.pack.sequence_length,
            token_budget=self.pack.token_budget,
            repeat=self.pack.repeat,
            sources=tuple(
                PackSourceRecipe(
                    corpus=source.corpus,
                    documents=given.documents,
                    share=None if self.pack.phases else source.share,
                    format=source.format,
                    packing=source.packing,
                    max_epochs=source.max_epochs,
                )
                for source, given in zip(self.pack.sources, self.sources, strict=True)
            ),
            phases=tuple(
                PackPhaseRecipe(share=phase.share, shares=self.pack.phase_shares(phase))
                for phase in self.pack.phases
            ),
            seed=self.seed,
        )

    def inputs(self) -> Mapping[str, Stage]:
        inputs = {"tokenizer": self.tokenizer}
        inputs.update({_role(number): given.stage for number, given in enumerate(self.sources)})
        if self.has_chat:
            inputs["template"] = self._template()
        return inputs

    @property
    def is_large(self) -> bool:
        """Whether it is encoded by several processes, and resumed after a kill."""
        return self.pack.token_budget >= _PARALLEL_TOKENS

    def cost(self) -> Cost:
        tokens = self.pack.token_budget
        pads = any(s.format == "chat" or s.packing == "best_fit" for s in self.pack.sources)
        return Cost(
            tokens=tokens,
            seconds=tokens / (ENCODED_TOKENS_PER_SECOND_AND_CORE * self._cores),
            disk_bytes=int(tokens * _BYTES_PER_TOKEN * (_PADDED_ROWS if pads else 1.0)),
            scratch_bytes=_SCRATCH_BYTES_PER_TOKEN * tokens if self.is_large else 0,
        )

    def resources(self) -> Resources:
        memory = PACK_MEMORY + self._memory_of_a_long_document()
        return Resources(cores=self._cores, memory_bytes=memory)

    @property
    def _cores(self) -> int:
        return self.available_cores if self.is_large else 1

    def _memory_of_a_long_document(self) -> int:
        """The most that a document takes that is encoded at once, as far as it is known before its
        corpus is built; those of the generated world are short."""
        if all(isinstance(given.stage, World) for given in self.sources):
            return 0
        return MAX_UNDIVIDED_CHARACTERS * ENCODING_BYTES_PER_CHARACTER

    def checks(self, folder_of: Callable[[Stage], Path | None]) -> Iterator[partial[object]]:
        """The tokenizer can encode documents, and the template dialogues."""
        tokenizer = folder_of(self.tokenizer)
        template = folder_of(self._template()) if self.has_chat else None
        if tokenizer is not None:
            yield partial(_require_encoders, tokenizer, template)

    def build(self, inputs: Mapping[str, ArtifactRef], work: Path, ctx: RunContext) -> Metrics:
        from cpt_residual.data.packing.build import Tokenising, build_pack
        from cpt_residual.modeling.tokenizer import load_tokenizer

        scratch = work / "tokens" if self.is_large else None
        tokenizer = load_tokenizer(inputs["tokenizer"].path)
        ledger = build_pack(
            work / "out",
            self._document_sources(inputs, tokenizer),
            self._plan(tokenizer),
            progress=ctx.progress,
            tokenising=Tokenising(scratch=scratch, num_workers=ctx.threads),
        )
        _require_labels(ledger)
        return _metrics(ledger)

    def _plan(self, tokenizer: Tokenizer) -> PackPlan:
        from cpt_residual.data.packing.build import PackPlan, PhasePlan
        from cpt_residual.modeling.token_side import token_map_hash
        from cpt_residual.modeling.tokenizer import added_tokens_of, bos_id_of, eos_id_of, pad_id_of

        return PackPlan(
            sequence_length=self.pack.sequence_length,
            token_budget=self.pack.token_budget,
            repeat=self.pack.repeat,
            seed=self.seed,
            bos_id=bos_id_of(tokenizer),
            eos_id=eos_id_of(tokenizer),
            pad_id=pad_id_of(tokenizer),
            tokenizer_map_hash=token_map_hash(tokenizer),
            added_tokens=added_tokens_of(tokenizer),
            phases=tuple(
                PhasePlan(phase.share, self.pack.phase_shares(phase)) for phase in self.pack.phases
            ),
        )

    def _document_sources(
        self, inputs: Mapping[str, ArtifactRef], tokenizer: Tokenizer
    ) -> list[DocumentSource]:
        from cpt_residual.data.tokenize.document_source import DocumentSource
        from cpt_residual.modeling.chat import ChatEncoder, chat_template_of
        from cpt_residual.modeling.tokenizer import text_encoder

        sources: list[DocumentSource] = []
        for number, (source, share) in enumerate(
            zip(self.pack.sources, self.pack.shares, strict=True)
        ):
            is_chat = source.format == "chat"
            made = DocumentSource(
                source.corpus,
                inputs[_role(number)].path / self.sources[number].documents,
                share,
                ChatEncoder(tokenizer, chat_template_of(inputs["template"].path))
                if is_chat
                else text_encoder(tokenizer),
                packing="whole" if is_chat else source.packing,
                max_epochs=source.max_epochs,
            )
            sources.append(made)
        return sources

    def _template(self) -> Stage:
        if self.template is None:
            raise ConfigError(
                f"pack {self.key} has a chat source, but no chat template is named",
                remedy="Name the model whose chat template renders the dialogues.",
            )
        return self.template


def _require_encoders(tokenizer_dir: Path, template_dir: Path | None) -> None:
    """Raises CompatibilityError where documents, or a dialogue, could not be encoded."""
    from cpt_residual.modeling.chat import ChatEncoder, chat_template_of
    from cpt_residual.modeling.tokenizer import bos_id_of, eos_id_of, load_tokenizer, text_encoder

    tokenizer = load_tokenizer(tokenizer_dir)
    for needed in (text_encoder, bos_id_of, eos_id_of):
        needed(tokenizer)
    if template_dir is not None:
        question, answer = _message("user", "Hello"), _message("assistant", "Hi")
        ChatEncoder(tokenizer, chat_template_of(template_dir))([[question, answer]])


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _role(number: int) -> str:
    return f"source_{number}"


def _require_labels(ledger: PackLedger) -> None:
    if not ledger.loss_tokens:
        raise CorpusError(
            f"none of the {ledger.tokens:,} tokens has a label: nothing could be learnt from them",
            problems=[f"{s.corpus}: {s.documents:,} documents begin" for s in ledger.sources],
            remedy="The first token of a document has no label, and prompts have none: give longer"
            " documents, or answers.",
        )


def _metrics(ledger: PackLedger) -> Metrics:
    metrics: Metrics = {
        "tokens": ledger.tokens,
        "num_rows": ledger.num_rows,
        "loss_tokens": ledger.loss_tokens,
        "padding": ledger.padding,
        "rows_sha256": ledger.rows_sha256,
        "tokenizer_map_hash": ledger.tokenizer_map_hash,
    }
    for source in ledger.sources:
        metrics[f"tokens/{source.corpus}"] = source.tokens
        metrics[f"passes/{source.corpus}"] = source.epochs
    return metrics

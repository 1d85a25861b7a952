"""A randomly initialised model with a trained tokenizer and chat template metadata."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from cpt_residual.config import derived
from cpt_residual.config.schema import Architecture, Frozen
from cpt_residual.core.rates import (
    RANDOM_PARAMETERS_PER_SECOND,
    SECONDS_TO_TRAIN_TOKENIZER,
    TORCH_MEMORY,
)
from cpt_residual.core.stage import ArtifactRef, Cost, Metrics, Resources, RunContext, Stage
from cpt_residual.stages.inputs import CorpusInput

_BYTES_PER_PARAMETER = 4


class InitRecipe(Frozen):
    """The tokenizer's corpus is an input; `documents` is the file read from it."""

    architecture: Architecture
    documents: str
    seed: int


@dataclass(frozen=True)
class Init:
    """A Llama or Qwen2 model with seeded random weights in fp32."""

    key: str
    architecture: Architecture
    corpus: CorpusInput
    seed: int

    name: ClassVar[str] = "init"
    version: ClassVar[int] = 1

    @property
    def node(self) -> str:
        return self.key

    def num_parameters(self) -> int:
        """Exact; tied tensors count once."""
        return derived.num_parameters(self.architecture)

    def recipe(self) -> InitRecipe:
        return InitRecipe(
            architecture=self.architecture, documents=self.corpus.documents, seed=self.seed
        )

    def inputs(self) -> Mapping[str, Stage]:
        return {"corpus": self.corpus.stage}

    def cost(self) -> Cost:
        drawing = self.num_parameters() / RANDOM_PARAMETERS_PER_SECOND
        return Cost(seconds=SECONDS_TO_TRAIN_TOKENIZER + drawing, disk_bytes=self._num_bytes)

    def resources(self) -> Resources:
        return Resources(memory_bytes=TORCH_MEMORY + 2 * self._num_bytes)

    @property
    def _num_bytes(self) -> int:
        return _BYTES_PER_PARAMETER * self.num_parameters()

    def build(self, inputs: Mapping[str, ArtifactRef], work: Path, ctx: RunContext) -> Metrics:
        from cpt_residual.modeling.initialise import write_initial_model

        del ctx
        documents = inputs["corpus"].path / self.corpus.documents
        num_parameters = write_initial_model(
            work / "out", architecture=self.architecture, texts=_texts(documents), seed=self.seed
        )
        assert num_parameters == self.num_parameters(), "the formula and the model disagree"
        return {"num_parameters": num_parameters, "vocab_size": self.architecture.vocab_size}


def _texts(documents: Path) -> Iterator[str]:
    """The documents in their order, one line at a time."""
    from cpt_residual.data.documents.parsing import parse_text

    with documents.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            yield parse_text(line, f"{documents.name}:{number}")

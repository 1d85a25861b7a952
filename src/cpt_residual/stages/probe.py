"""Cloze questions about one corpus: `questions.jsonl` and `ledger.json`."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import SerializeAsAny

from cpt_residual.base_model import Frozen
from cpt_residual.config.cloze import ClozeQuestions
from cpt_residual.core.rates import CLOZE_TEXT_BYTES_PER_SECOND
from cpt_residual.core.stage import ArtifactRef, Cost, Metrics, Resources, RunContext, Stage
from cpt_residual.data.cloze.questions import SPANS_PER_DOCUMENT
from cpt_residual.errors import ConfigError
from cpt_residual.stages.inputs import CorpusInput
from cpt_residual.stages.pack import PackStage

if TYPE_CHECKING:
    from cpt_residual.data.cloze.build import Reference

_BYTES_PER_QUESTION = 1000
_BYTES_PER_SPAN = 1000


class ProbeRecipe(Frozen):
    """What is asked for, and the files inside the inputs: of the corpus and of every reference.
    unicode: the version of the tables that say what a word is; it comes with Python."""

    suite: SerializeAsAny[ClozeQuestions]
    documents: str
    references: dict[str, str]
    seed: int
    unicode: str


@dataclass(frozen=True)
class Probe:
    """The cloze questions of one suite, the same for all variants.

    `corpora`: the suite's corpus and its references, by key. `pack`: what CPT reads of the corpus;
    only documents in it are asked about.
    """

    key: str
    suite: ClozeQuestions
    corpora: Mapping[str, CorpusInput]
    seed: int
    pack: PackStage | None = None

    name: ClassVar[str] = "probe"
    version: ClassVar[int] = 2

    @property
    def node(self) -> str:
        return f"probe:{self.key}"

    def recipe(self) -> ProbeRecipe:
        return ProbeRecipe(
            suite=self.suite,
            documents=self.corpora[self.suite.corpus].documents,
            references={name: file for name, (_, file) in self._references().items()},
            seed=self.seed,
            unicode=unicodedata.unidata_version,
        )

    def inputs(self) -> Mapping[str, Stage]:
        keys = [self.suite.corpus, *self.suite.references]
        inputs: dict[str, Stage] = {f"corpus:{key}": self.corpora[key].stage for key in keys}
        return inputs | ({"pack": self.pack} if self.pack else {})

    def cost(self) -> Cost:
        keys = [self.suite.corpus, *self.suite.references]
        stages = {key: self.corpora[key].stage for key in keys}
        num_bytes = sum(stage.cost().disk_bytes for stage in stages.values())
        return Cost(
            seconds=2 * num_bytes / CLOZE_TEXT_BYTES_PER_SECOND,
            disk_bytes=self.suite.num_questions * _BYTES_PER_QUESTION,
        )

    def resources(self) -> Resources:
        spans = self.suite.max_documents * SPANS_PER_DOCUMENT
        return Resources(memory_bytes=spans * _BYTES_PER_SPAN)

    def build(self, inputs: Mapping[str, ArtifactRef], work: Path, ctx: RunContext) -> Metrics:
        from cpt_residual.data.cloze.build import build_probe
        from cpt_residual.data.packing.pack_ledger import read_ledger

        suite = self.suite
        packed = None
        if self.pack is not None:
            packed = read_ledger(inputs["pack"].path).documents_reached(suite.corpus)
        ledger = build_probe(
            work / "out",
            inputs[f"corpus:{suite.corpus}"].path / self.corpora[suite.corpus].documents,
            self._reference_files(inputs),
            suite,
            seed=self.seed,
            progress=ctx.progress,
            documents_packed=packed,
        )
        return {
            "questions": ledger.questions,
            "chance": ledger.chance,
            "documents": ledger.documents,
            "documents_sampled": ledger.documents_sampled,
            "spans_found": ledger.spans_found,
        }

    def _reference_files(self, inputs: Mapping[str, ArtifactRef]) -> list[Reference]:
        from cpt_residual.data.cloze.build import Reference

        return [
            Reference(name, inputs[f"corpus:{key}"].path / file)
            for name, (key, file) in self._references().items()
        ]

    def _references(self) -> dict[str, tuple[str, str]]:
        """Name for messages -> (corpus, file inside its artifact); at least one."""
        own = self.corpora[self.suite.corpus].heldout
        found = {key: (key, self.corpora[key].documents) for key in self.suite.references}
        if self.suite.heldout_is_reference and own is not None:
            found[f"held-out {self.suite.corpus}"] = (self.suite.corpus, own)
        if not found:
            raise ConfigError(
                f"{self.node} has nothing to tell new knowledge from old",
                problems=[
                    "references is empty, and no held-out documents that could stand in for them"
                ],
                remedy="Name a corpus of text that the models know, or give the corpus "
                "heldout_documents above 0 with heldout_is_reference=true.",
            )
        return found

"""What a suite hands to an evaluation: tasks, the files they need, and the amount of work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cpt_residual.base_model import Count, Frozen, Line, PositiveInt
from cpt_residual.config.measures import MeasureRole
from cpt_residual.errors import EvaluationError

Aggregate = Literal["mean", "mean_of_checks", "bits_per_byte", "perplexity"]
"""How one score comes from the values of all documents. mean: of numbers; mean_of_checks: over all
items of lists; bits_per_byte, perplexity: of pairs (log likelihood in nats, number of units)."""


class HarnessTask(Frozen):
    """A stock task of lm-eval. `chat`: ask through the chat template. `metric`, `role`, `label`:
    which score stands for the task and what it means, where `stock_tasks` does not know."""

    task: Line
    num_fewshot: Count | None = None
    chat: bool = True
    limit: PositiveInt | None = None
    metric: Line | None = None
    role: MeasureRole | None = None
    label: Line | None = None


@dataclass(frozen=True)
class TaskFile:
    """A task that lm-eval is to load. template: its yaml file, which names the scoring functions;
    documents: the file with what is asked, which the template's loader gets as `file`, beside
    `arguments`; chat: asked through the chat template (generated answers, at most `max_new_tokens`
    each), else the text as it stands."""

    task: str
    template: Path
    documents: Path
    metrics: Mapping[str, Aggregate]
    arguments: Mapping[str, str | int] = field(default_factory=dict[str, "str | int"])
    max_new_tokens: int | None = None
    chat: bool = True


@dataclass(frozen=True, kw_only=True)
class SuiteInputs:
    """Files that suites ask about. probes_dir: `probes/` of the world; heldout: held-out documents
    by corpus; questions: cloze questions by suite."""

    probes_dir: Path | None = None
    heldout: Mapping[str, Path] = field(default_factory=dict[str, Path])
    questions: Mapping[str, Path] = field(default_factory=dict[str, Path])


def existing_file(path: Path | None, what: str) -> Path:
    """`path`, if it is a file. Raises EvaluationError."""
    if path is None or not path.is_file():
        raise EvaluationError(
            f"A suite asks for {what}, but its inputs do not have that.",
            remedy="Give the experiment a world for its probes, and every held-out corpus "
            "heldout_documents above 0.",
        )
    return path


@dataclass(frozen=True)
class AskedOf:
    """What the suites are asked about. prompts_per_type: of the world's probes; generated: the
    corpora whose documents are the world's, which are short."""

    prompts_per_type: int = 0
    generated: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Workload:
    """An estimate of what a task asks of a model. requests: sequences that pass through it;
    prompt_tokens: read in each of them; new_tokens: generated after it, 0 when a given text is
    scored."""

    requests: int
    prompt_tokens: int
    new_tokens: int = 0

    @property
    def tokens(self) -> int:
        return self.requests * (self.prompt_tokens + self.new_tokens)

    def generated_batches(self, batch_size: int) -> int:
        """Steps of generation: every batch takes one for each new token."""
        return -(-self.requests // batch_size) * self.new_tokens

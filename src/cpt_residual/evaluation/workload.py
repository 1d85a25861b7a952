"""How much an evaluation asks a model: requests and tokens of every suite, before any data is read.

Estimates for the plan. Numbers of questions are those of the public data sets; tokens are averages
of a BPE vocabulary of 128,000 entries, rounded; responses of instruct models are assumed to be of
the stated length (a variant that does not stop takes up to the task's limit).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cpt_residual.config.cloze import ClozeSuite
from cpt_residual.config.schema import HarnessSuite, HarnessTask, HeldoutSuite, Suite, WorldSuite


@dataclass(frozen=True)
class Workload:
    """requests: sequences that pass through the model; prompt_tokens: read in each of them;
    new_tokens: generated after it, 0 when a given text is scored."""

    requests: int
    prompt_tokens: int
    new_tokens: int = 0

    @property
    def tokens(self) -> int:
        return self.requests * (self.prompt_tokens + self.new_tokens)

    def generated_batches(self, batch_size: int) -> int:
        """Steps of generation: every batch takes one for each new token."""
        return -(-self.requests // batch_size) * self.new_tokens


@dataclass(frozen=True)
class _Task:
    """questions; sequences a question (choices that are scored); tokens of one question with its
    answer, and of one example of the few-shot prompt; new_tokens as in Workload."""

    questions: int
    sequences: int
    tokens: int
    new_tokens: int = 0


_KNOWN: Mapping[str, _Task] = {
    "arc_challenge": _Task(1172, 4, 40),
    "arc_easy": _Task(2376, 4, 35),
    "bbh": _Task(6511, 1, 300, 200),
    "boolq": _Task(3270, 2, 150),
    "gsm8k": _Task(1319, 1, 160, 130),
    "hellaswag": _Task(10042, 4, 90),
    "humaneval": _Task(164, 1, 150, 250),
    "ifeval": _Task(541, 1, 60, 400),
    "lambada_openai": _Task(5153, 1, 90),
    "mbpp": _Task(500, 1, 150, 150),
    "mmlu": _Task(14042, 1, 110),  # four one-token choices after one prompt: one pass
    "mmlu_pro": _Task(12032, 1, 350, 300),
    "openbookqa": _Task(500, 4, 25),
    "piqa": _Task(1838, 2, 40),
    "sciq": _Task(1000, 4, 120),
    "triviaqa": _Task(17944, 1, 25, 16),
    "truthfulqa_mc1": _Task(817, 5, 40),
    "truthfulqa_mc2": _Task(817, 7, 40),
    "wikitext": _Task(62, 1, 4600),
    "winogrande": _Task(1267, 2, 30),
}
_OTHER = _Task(1000, 4, 100)
"""Of tasks that are not in the table."""

_WORLD_PROMPTS_PER_TYPE = 16  # of a probe, for each of `world.num_prompts_per_type`
_WORLD_PROMPT_TOKENS = 40
_WORLD_DOCUMENT_TOKENS = 60
_DOCUMENT_TOKENS = 700
_CHARACTERS_PER_TOKEN = 4
_SPAN_TOKENS = 4


@dataclass(frozen=True)
class AskedOf:
    """What the suites are asked about. prompts_per_type: of the world's probes; generated: the
    corpora whose documents are the world's, which are short."""

    prompts_per_type: int = 0
    generated: frozenset[str] = frozenset()


def workload_of(suites: Iterable[Suite], asked: AskedOf) -> list[Workload]:
    """One entry per task, probe or corpus."""
    return [each for suite in suites for each in _of_suite(suite, asked)]


def _of_suite(suite: Suite, asked: AskedOf) -> list[Workload]:
    match suite:
        case HarnessSuite():
            return [_of_task(task) for task in suite.tasks]
        case WorldSuite():
            prompts = _WORLD_PROMPTS_PER_TYPE * asked.prompts_per_type
            each = Workload(prompts, _WORLD_PROMPT_TOKENS, suite.max_new_tokens // 2)
            return [each] * len(suite.probes)
        case HeldoutSuite():
            return [
                Workload(
                    suite.max_documents,
                    _WORLD_DOCUMENT_TOKENS if corpus in asked.generated else _DOCUMENT_TOKENS,
                )
                for corpus in suite.corpora
            ]
        case ClozeSuite():
            tokens = suite.context_characters // _CHARACTERS_PER_TOKEN + _SPAN_TOKENS
            return [Workload(suite.num_questions * (1 + suite.num_distractors), tokens)]


def _of_task(task: HarnessTask) -> Workload:
    known = _KNOWN.get(task.task, _OTHER)
    questions = min(known.questions, task.limit or known.questions)
    tokens = known.tokens * (1 + (task.num_fewshot or 0))
    return Workload(questions * known.sequences, tokens, known.new_tokens)

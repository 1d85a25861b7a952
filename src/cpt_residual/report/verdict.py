"""What may be said in plain words. Pure: numbers in, sentences out, and never more than the
numbers carry: every claim of better, worse or kept rests on a paired 95 % interval over prompts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from cpt_residual.evaluation import statistics
from cpt_residual.report.facts import Difference, RoleNames, Variant
from cpt_residual.report.format import flops_text, percent, points, ratio_text

Outcome = Literal[
    "kept", "mostly_kept", "partly", "failed", "undecided", "nothing_to_repair", "not_measured"
]
KEPT_LOSS = 0.05
"""At most this share of instruct's own score is lost (upper end of the interval): kept."""
MOSTLY_KEPT_LOSS = 0.15
"""At most this share of instruct's own score is lost (upper end of the interval): mostly kept."""
HALF_RECOVERED = 0.5
LEAST_INSTRUCT = 0.10
"""An instruct model that follows less than this has no instruction following to keep or lose."""
TURN_CLOSING_SHARE = 0.10
"""From here on, the part of a drop that is unclosed turns is worth a sentence."""


@dataclass(frozen=True)
class Evidence:
    """What the verdict looks at. `score[measure][variant]`; `pairs[measure][(first, second)]` is
    the paired difference first - second. `drift[model]` is relative to the model's start."""

    roles: RoleNames
    variants: tuple[Variant, ...]
    score: Mapping[str, Mapping[str, float]]
    pairs: Mapping[str, Mapping[tuple[str, str], Difference]] = field(
        default_factory=dict[str, Mapping[tuple[str, str], Difference]]
    )
    drift: Mapping[str, float] = field(default_factory=dict[str, float])
    following: str = "instruction following"

    def value(self, measure: str, variant: str | None) -> float | None:
        return None if variant is None else self.score.get(measure, {}).get(variant)

    def pair(self, measure: str, first: str, second: str | None) -> Difference | None:
        return None if second is None else self.pairs.get(measure, {}).get((first, second))


@dataclass(frozen=True)
class Verdict:
    """One headline, and what else must be known, one paragraph per subject."""

    outcome: Outcome
    headline: str
    paragraphs: tuple[str, ...]

    @property
    def text(self) -> str:
        return " ".join((self.headline, *self.paragraphs))


def judge(evidence: Evidence) -> Verdict:
    """The verdict on the residual in this experiment.

    Where instruct itself follows next to nothing, nothing is said of who follows more.
    """
    outcome = _outcome(evidence)
    instruct = evidence.value("strict", evidence.roles.instruct)
    silent = instruct is not None and instruct < LEAST_INSTRUCT
    subjects = (
        [] if silent else [*_naive(evidence, outcome), *_turns(evidence)],
        [*_bits(evidence), *_cloze(evidence), *_facts(evidence)],
        *([] if silent else _rivals(evidence)),
        [*([] if silent else _alpha(evidence)), *_drift(evidence, outcome)],
        _limits(evidence),
    )
    paragraphs = tuple(" ".join(sentences) for sentences in subjects if sentences)
    return Verdict(outcome, _headline(evidence, outcome), paragraphs)


def recovery(evidence: Evidence, measure: str = "strict") -> float | None:
    """Recovery of the merged model; None where a score is missing or nothing was to recover."""
    roles = evidence.roles
    merged = evidence.value(measure, roles.merged)
    instruct = evidence.value(measure, roles.instruct)
    floor = evidence.value(measure, roles.base_cpt)
    if merged is None or instruct is None or floor is None:
        return None
    return statistics.recovery(merged=merged, base_cpt=floor, instruct=instruct)


def _outcome(evidence: Evidence) -> Outcome:
    roles = evidence.roles
    loss = evidence.pair("strict", roles.instruct, roles.merged)
    instruct = evidence.value("strict", roles.instruct)
    if loss is None or instruct is None or instruct < LEAST_INSTRUCT:
        return "not_measured"
    forgotten = evidence.pair("strict", roles.instruct, roles.instruct_cpt)
    if forgotten is not None and not forgotten.above:
        return "nothing_to_repair"
    if loss.high <= KEPT_LOSS * instruct:
        return "kept"
    if loss.high <= MOSTLY_KEPT_LOSS * instruct:
        return "mostly_kept"
    gain = evidence.pair("strict", roles.merged, roles.instruct_cpt)
    no_better = gain is not None and not gain.above
    if loss.low > MOSTLY_KEPT_LOSS * instruct:
        share = recovery(evidence)
        return "failed" if no_better or share is None or share < HALF_RECOVERED else "partly"
    return "failed" if no_better and gain is not None and gain.below else "undecided"


def _headline(evidence: Evidence, outcome: Outcome) -> str:
    roles = evidence.roles
    loss = evidence.pair("strict", roles.instruct, roles.merged)
    if outcome == "not_measured" and loss is not None:
        return (
            f"No verdict: {roles.instruct} itself follows only {_share(evidence, roles.instruct)} "
            "of the instructions, so there is nothing to keep or to lose."
        )
    if loss is None:
        return (
            f"No verdict: {roles.instruct} and {roles.merged} were not both scored on the same "
            "instruction-following prompts."
        )
    against = (
        f"{roles.merged} follows {_share(evidence, roles.merged)} of the instructions strictly, "
        f"{roles.instruct} {_share(evidence, roles.instruct)} ({_loss(loss)})"
    )
    texts: dict[Outcome, str] = {
        "kept": f"The residual kept instruction following: {against}.",
        "mostly_kept": f"The residual kept most of instruction following: {against}.",
        "partly": (
            f"The residual brought back only part of instruction following: {against}; "
            f"recovery {percent(recovery(evidence))}."
        ),
        "failed": f"The residual did not work here: {against}.",
        "undecided": (
            f"Undecided: {against}. Whether the loss stays within {percent(MOSTLY_KEPT_LOSS)} of "
            f"what {roles.instruct} can do cannot be told from {loss.n} prompts."
        ),
        "nothing_to_repair": (
            "Nothing to repair: continuous pre-training of the instruct model did not measurably "
            f"lower its instruction following, so this run cannot show a repair; {against}."
        ),
        "not_measured": "",
    }
    return texts[outcome]


def _naive(evidence: Evidence, outcome: Outcome) -> list[str]:
    roles = evidence.roles
    if roles.instruct_cpt is None:
        return ["CPT of the instruct model was not run, so its forgetting is unknown here."]
    found: list[str] = []
    forgotten = evidence.pair("strict", roles.instruct, roles.instruct_cpt)
    gain = evidence.pair("strict", roles.merged, roles.instruct_cpt)
    if forgotten is not None:
        naive = f"{roles.instruct_cpt} follows {_share(evidence, roles.instruct_cpt)}"
        found.append(f"CPT of the instruct model itself: {naive} ({_loss(forgotten)}).")
    if gain is None:
        return found
    size = f"{points(abs(gain.value))} points ({_interval(gain)})"
    if gain.above:
        better = f"The residual is better than CPT of the instruct model by {size}"
        tail = ", yet far from instruct" if outcome in ("failed", "partly") else ""
        found.append(f"{better}{tail}.")
    elif gain.below:
        size = f"{points(-gain.value)} points ({_interval(gain, sign=-1)})"
        found.append(f"The residual is worse than CPT of the instruct model by {size}.")
    else:
        found.append(
            "No difference between the residual and CPT of the instruct model is shown: "
            f"{_signed(gain)}."
        )
    return found


def _turns(evidence: Evidence) -> list[str]:
    """How much of the drop of instruct_cpt is turns that were not closed."""
    roles = evidence.roles
    strict = evidence.value("strict", roles.instruct_cpt)
    relaxed = evidence.value("open", roles.instruct_cpt)
    instruct = evidence.value("open", roles.instruct)
    if strict is None or relaxed is None or instruct is None:
        return []
    if relaxed - strict < TURN_CLOSING_SHARE:
        return []
    merged = evidence.value("open", roles.merged)
    beside = "" if merged is None else f", {roles.merged} {percent(merged)}"
    return [
        (
            f"Part of the low score of {roles.instruct_cpt} is turns that it does not close: when "
            f"closing is not required it reaches {percent(relaxed)} ({roles.instruct} "
            f"{percent(instruct)}{beside})."
        )
    ]


def _bits(evidence: Evidence) -> list[str]:
    roles = evidence.roles
    start = evidence.value("bits_new", roles.instruct)
    merged = evidence.value("bits_new", roles.merged)
    best = evidence.value("bits_new", roles.base_cpt)
    if start is None or merged is None or best is None:
        return []
    values = (
        f"{roles.merged} needs {merged:.3f} bits per byte, {roles.base_cpt} {best:.3f}, "
        f"{roles.instruct} {start:.3f}"
    )
    if start <= best:
        return [f"On held-out new-domain text {values}."]
    kept = (start - merged) / (start - best)
    share = percent(kept) if kept > 0 else "none"
    return [f"On held-out new-domain text {values}: {share} of the gain is kept."]


def _cloze(evidence: Evidence) -> list[str]:
    """What the training text left behind, asked as text (a base model can answer)."""
    roles = evidence.roles
    names = (roles.merged, roles.base_cpt, roles.base, roles.instruct)
    values = {name: evidence.value("cloze", name) for name in dict.fromkeys(names)}
    known = [f"{name} {percent(value)}" for name, value in values.items() if value is not None]
    if values[roles.merged] is None or len(known) < 2:
        return []
    return [f"Rare spans of the new text, cloze: {', '.join(known)}."]


def _facts(evidence: Evidence) -> list[str]:
    roles = evidence.roles
    merged = evidence.value("new_facts", roles.merged)
    instruct = evidence.value("new_facts", roles.instruct)
    if merged is None or instruct is None:
        return []
    text = (
        f"Asked in chat, {roles.merged} knows {percent(merged)} of the new facts "
        f"({roles.instruct} {percent(instruct)}"
    )
    naive = evidence.value("new_facts", roles.instruct_cpt)
    text += f", {roles.instruct_cpt} {percent(naive)})" if naive is not None else ")"
    pair = evidence.pair("new_facts", roles.merged, roles.instruct_cpt)
    if pair is not None and pair.below:
        text += (
            f": new knowledge was partly lost against CPT of the instruct model, "
            f"{points(-pair.value)} points ({_interval(pair, sign=-1)})"
        )
    both = evidence.value("obeyed_and_right", roles.merged)
    both_naive = evidence.value("obeyed_and_right", roles.instruct_cpt)
    both_instruct = evidence.value("obeyed_and_right", roles.instruct)
    sentences = [text + "."]
    if both is not None and both_instruct is not None:
        beside = f", {roles.instruct_cpt} {percent(both_naive)}" if both_naive is not None else ""
        sentences.append(
            f"Instruction obeyed and new fact right: {roles.merged} {percent(both)}, "
            f"{roles.instruct} {percent(both_instruct)}{beside}."
        )
    return sentences


def _rivals(evidence: Evidence) -> list[list[str]]:
    """Routes that train on instruction data, each against the residual."""
    own = next((v.flops for v in evidence.variants if v.name == evidence.roles.merged), None)
    return [
        _rival(evidence, variant, pair, own)
        for variant in evidence.variants
        if variant.kind in ("replay", "sft")
        and (pair := evidence.pair("strict", evidence.roles.merged, variant.name)) is not None
    ]


def _rival(evidence: Evidence, rival: Variant, pair: Difference, own: float | None) -> list[str]:
    sign = 1 if pair.value >= 0 else -1
    size = f"{points(abs(pair.value))} points ({_interval(pair, sign=sign)})"
    name = f"{rival.name} ({_share(evidence, rival.name)})"
    if pair.below:
        found = [f"{name} follows instructions better than the residual, by {size}."]
    elif pair.above:
        found = [f"The residual follows instructions better than {name}, by {size}."]
    else:
        found = [f"Against {name} no difference in following is shown: {_signed(pair)}."]
    facts = evidence.pair("new_facts", evidence.roles.merged, rival.name)
    if facts is not None and (facts.below or facts.above):
        word = "more" if facts.below else "fewer"
        known = percent(evidence.value("new_facts", rival.name))
        found.append(f"{rival.name} knows {word} new facts ({known}).")
    needs = ", and it needs instruction data" if rival.needs_instruction_data else ""
    found.append(f"It costs {flops_text(rival.flops)} FLOPs{_times(rival.flops, own)}{needs}.")
    return found


def _alpha(evidence: Evidence) -> list[str]:
    """Whether another alpha scored higher; chosen on the same prompts, hence only a hint."""
    merged = evidence.value("strict", evidence.roles.merged)
    sweep = [(evidence.value("strict", v.name), v) for v in evidence.variants if v.kind == "alpha"]
    scored = [(score, variant) for score, variant in sweep if score is not None]
    if not scored or merged is None:
        return []
    score, best = max(scored, key=lambda pair: pair[0])
    if score <= merged:
        return ["No other alpha of the sweep scored higher on these prompts."]
    return [
        (
            f"alpha = {best.alpha:g} scored higher ({percent(score)}), but it was picked on the "
            "same prompts."
        )
    ]


def _drift(evidence: Evidence, outcome: Outcome) -> list[str]:
    drift = evidence.drift.get(evidence.roles.base_cpt)
    if drift is None:
        return []
    text = f"CPT moved the base weights by {drift:.3f} of their norm (drift)"
    if outcome in ("failed", "partly", "undecided"):
        return [
            (
                f"{text}: the residual was made for the weights before that move. Lower the drift "
                "(general text in the corpus, a smaller learning rate) before tuning alpha."
            )
        ]
    return [f"{text}."]


def _limits(evidence: Evidence) -> list[str]:
    pairs = evidence.pairs.get("strict", {})
    if not pairs:
        return []
    return [
        "Intervals are 95 % over prompts of one seed: they do not cover the spread between seeds."
    ]


def _share(evidence: Evidence, variant: str) -> str:
    return percent(evidence.value("strict", variant))


def _loss(pair: Difference) -> str:
    """A difference first - second, told as points lost from first to second."""
    word = "lost" if pair.value >= 0 else "gained"
    sign = 1 if pair.value >= 0 else -1
    return f"{points(abs(pair.value))} points {word}, {_interval(pair, sign=sign)}"


def _signed(pair: Difference) -> str:
    return f"{points(pair.value, signed=True)} points ({_interval(pair)})"


def _interval(pair: Difference, *, sign: int = 1) -> str:
    low, high = sorted((sign * pair.low, sign * pair.high))
    return f"95 % CI {points(low)} to {points(high)}"


def _times(flops: float | None, own: float | None) -> str:
    if not flops or not own:
        return ""
    return f" ({ratio_text(flops / own)} the residual route)"

"""Made-up but realistic facts for report tests, in the regimes that a verdict must tell apart."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace

from cpt_residual.config.contrasts import ContrastFamily, Kind
from cpt_residual.config.measures import Measure
from cpt_residual.config.schema import (
    Goals,
    Roles,
)
from cpt_residual.config.suite_tasks import HarnessTask
from cpt_residual.report.figures import Pictured
from cpt_residual.report.work_figures import TracePoint
from cpt_residual.report.write import Findings
from cpt_residual.results.contrasts import make_families
from cpt_residual.results.document import Geometry, Results, RouteStep, Training, Variant
from cpt_residual.results.goals import check_goals
from cpt_residual.results.outcomes import Outcomes
from cpt_residual.results.table import ResultTable, Score
from cpt_residual.suites.harness import HarnessSuite
from cpt_residual.suites.heldout import HeldoutSuite
from cpt_residual.suites.world import WorldSuite
from support.geometry_rows import cells

N_PROMPTS = 194
TYPES = (
    "bullets",
    "end",
    "json",
    "lower",
    "prompt",
    "ps",
    "quote",
    "short",
    "start",
    "title",
    "twice",
    "upper",
)
ROLES = Roles()
CORE = ("base", "instruct", "base_cpt", "instruct_cpt", "base_cpt_residual")
STRICT = "instruction_following/prompt_level_strict_acc"
GOALS = Goals(
    instruct_at_least=0.80,
    forgetting_at_least=0.30,
    loss_at_most=0.15,
    perplexity_ratio_at_most=0.8,
    new_facts_ratio_at_least=3.0,
)
CPT, SFT, PRETRAIN = 2.1e12, 4.6e12, 6.3e12


@dataclass(frozen=True)
class Line:
    """strict, open, closed, new facts, obeyed and right, old facts, bits new, bits general."""

    kind: Kind
    strict: float
    open: float
    closed: float
    new_facts: float
    both: float
    old_facts: float
    bits_new: float
    bits_general: float
    alpha: float | None = None


SUCCESS: dict[str, Line] = {
    "base": Line("base", 0.0, 0.31, 0.0, 0.016, 0.0, 0.197, 0.812, 0.435),
    "instruct": Line("instruct", 0.907, 0.907, 0.995, 0.082, 0.065, 0.647, 0.798, 0.607),
    "base_cpt": Line("base_cpt", 0.0, 0.28, 0.0, 0.098, 0.0, 0.116, 0.326, 0.461),
    "instruct_cpt": Line("instruct_cpt", 0.279, 0.517, 0.47, 0.992, 0.135, 0.997, 0.335, 0.472),
    "base_cpt_residual": Line("merged", 0.842, 0.847, 0.99, 0.614, 0.35, 0.547, 0.581, 0.67, 1.0),
    "base_cpt_residual_alpha_0.5": Line(
        "alpha", 0.027, 0.3, 0.05, 0.836, 0.015, 0.734, 0.384, 0.51, 0.5
    ),
    "base_cpt_residual_alpha_0.75": Line(
        "alpha", 0.475, 0.61, 0.7, 0.812, 0.263, 0.738, 0.458, 0.567, 0.75
    ),
    "base_cpt_residual_alpha_1.25": Line(
        "alpha", 0.71, 0.71, 0.99, 0.39, 0.21, 0.356, 0.792, 0.884, 1.25
    ),
    "base_donor_residual": Line(
        "control", 0.848, 0.85, 0.99, 0.066, 0.068, 0.609, 0.829, 0.682, 1.0
    ),
    "base_cpt_donor_residual": Line(
        "donor", 0.776, 0.78, 0.98, 0.601, 0.321, 0.522, 0.618, 0.731, 1.0
    ),
    "base_cpt_sft": Line("sft", 0.896, 0.9, 0.99, 0.85, 0.51, 0.7, 0.42, 0.62),
    "instruct_cpt_replay": Line("replay", 0.905, 0.91, 0.99, 0.972, 0.565, 0.966, 0.342, 0.483),
}

_FAILING = {
    "instruct": Line("instruct", 0.784, 0.784, 0.99, 0.09, 0.06, 0.6, 0.80, 0.61),
    "base_cpt": Line("base_cpt", 0.0, 0.1, 0.0, 0.05, 0.0, 0.1, 0.30, 0.9),
    "instruct_cpt": Line("instruct_cpt", 0.0, 0.05, 0.01, 0.6, 0.0, 0.3, 0.31, 0.95),
    "base_cpt_residual": Line("merged", 0.046, 0.05, 0.3, 0.09, 0.01, 0.1, 2.5, 2.9, 1.0),
}
HIGH_DRIFT: dict[str, Line] = {"base": SUCCESS["base"], **_FAILING}
NO_FORGETTING: dict[str, Line] = {
    **{name: SUCCESS[name] for name in ("base", "instruct", "base_cpt", "base_cpt_residual")},
    "instruct_cpt": Line("instruct_cpt", 0.902, 0.905, 0.99, 0.9, 0.6, 0.9, 0.335, 0.472),
}


FAMILIES = {
    "kept": ContrastFamily(
        question="Does the residual keep what the instruct model can do?",
        variants=["base_cpt_residual"],
        against="instruct",
        measures=["instruction_following"],
    ),
    "forgetting": ContrastFamily(
        variants=["instruct_cpt"], against="instruct", measures=["instruction_following"]
    ),
    "naive": ContrastFamily(
        variants=["base_cpt_residual"],
        against="instruct_cpt",
        measures=["instruction_following", "new_knowledge"],
    ),
    "rivals": ContrastFamily(
        kinds=["sft", "replay"],
        against="base_cpt_residual",
        measures=["instruction_following", "new_knowledge"],
    ),
}
_SUITES = (
    WorldSuite(
        kind="world",
        probes=["instruction_following", "new_instructions", "new_facts", "old_facts"],
        max_new_tokens=8,
    ),
    HeldoutSuite(
        kind="heldout",
        corpora=["new_domain", "general"],
        max_documents=9,
        new_domain="new_domain",
        general="general",
    ),
    HarnessSuite(
        kind="harness",
        tasks=[HarnessTask(task=task) for task in ("ifeval", "mmlu", "gsm8k")],
    ),
)


def declared_measures() -> list[Measure]:
    return [measure for suite in _SUITES for measure in suite.measures("suite")]


def facts(
    lines: dict[str, Line] = SUCCESS, *, drift: float = 0.123, seed: int = 0, world: bool = True
) -> Findings:
    """Findings of an experiment; `world=False`: as a run on stock tasks has them (no probes)."""
    order = [*CORE, *(name for name in lines if name not in CORE)]
    outcomes = _outcomes(lines, seed)
    rows = [row for name in order for row in _rows(name, lines[name], outcomes, world=world)]
    table = ResultTable.of(rows, declared_measures(), order)
    kinds: dict[str, Kind] = {name: lines[name].kind for name in order}
    results = Results(
        experiment="made_up",
        question="Does the residual keep instruction following after continuous pre-training?",
        seed=seed,
        roles=ROLES,
        variants=tuple(_variant(name, lines[name]) for name in order),
        table=table,
        declared=FAMILIES,
        margin=0.05,
        answered_by="kept",
        families=make_families(FAMILIES, kinds, table.measures, outcomes, margin=0.05),
        goals=check_goals(GOALS, table, ROLES),
        trainings=_trainings(lines),
        geometry=Geometry(
            drift={"base_cpt": drift, "instruct_cpt": drift * 1.01},
            cosine={"residual, base_cpt": 0.004, "base_cpt, instruct_cpt": 0.31},
            other={"sign conflict, residual and base_cpt": 0.498},
        ),
        provenance=(
            ("chat template", "sha256 0f1e2d3c"),
            ("lm-eval", "0.4.13"),
            ("scorer", "sha256 aa11bb22"),
        ),
        lineage="base_cpt_residual (7c1e90ab) alpha=1.0\n├─ cpt:base_cpt (52d01fce)",
    )
    return Findings(results, outcomes, Pictured(_traces(seed, lines), cells(4)))


def without_goals(given: Findings) -> Findings:
    return replace(given, results=given.results.model_copy(update={"goals": ()}))


def _outcomes(lines: dict[str, Line], seed: int) -> Outcomes:
    prompts = _prompts(lines, seed)
    strict = {name: {prompt: scores[name] for prompt, scores in prompts.items()} for name in lines}
    facts = {
        name: {f"{seed}-{i:02d}": float(i < round(64 * line.new_facts)) for i in range(64)}
        for name, line in lines.items()
    }
    return Outcomes({STRICT: strict, "new_facts/accuracy": facts})


def _prompts(lines: dict[str, Line], seed: int) -> dict[str, dict[str, float]]:
    """About n * strict prompts right (exactly for seed 0); easy prompts are easy for all."""
    generator = random.Random(seed)
    luck = {name: generator.uniform(-0.05, 0.05) if seed else 0.0 for name in lines}
    easy = list(range(N_PROMPTS))
    generator.shuffle(easy)
    values: dict[str, dict[str, float]] = {f"{seed}-{i:03d}": {} for i in range(N_PROMPTS)}
    for name, line in lines.items():
        jitter = sorted(range(N_PROMPTS), key=lambda i: easy[i] + 40 * generator.random())
        right = set(jitter[: round(N_PROMPTS * min(1.0, line.strict * (1 + luck[name])))])
        for i in range(N_PROMPTS):
            values[f"{seed}-{i:03d}"][name] = float(i in right)
    return values


def _rows(name: str, line: Line, outcomes: Outcomes, *, world: bool) -> list[Score]:
    generator = random.Random(name)
    strict = sum(outcomes.values[STRICT][name].values()) / N_PROMPTS

    def row(task: str, metric: str, value: float, n: int) -> Score:
        stderr = math.sqrt(max(value * (1 - value), 0.0) / n) if value <= 1 else None
        return score(task, metric, value, stderr, n)

    def score(task: str, metric: str, value: float, stderr: float | None, n: int) -> Score:
        return Score(
            variant=name, suite="s", task=task, metric=metric, value=value, stderr=stderr, n=n
        )

    if not world:
        return [
            row("ifeval", "prompt_level_strict_acc", strict, 541),
            row("ifeval", "prompt_level_loose_acc", min(1.0, strict + 0.02), 541),
            row("ifeval", "inst_level_strict_acc", min(1.0, strict + 0.03), 834),
            row("mmlu", "acc", 0.25 + 0.4 * line.old_facts, 14042),
            row("gsm8k", "exact_match", 0.5 * line.strict, 1319),
        ]
    task = "instruction_following"
    found = [
        row(task, "prompt_level_strict_acc", strict, N_PROMPTS),
        row(task, "prompt_level_loose_acc", min(1.0, strict + 0.012), N_PROMPTS),
        row(task, "inst_level_strict_acc", min(1.0, strict * 1.02), 244),
        row(task, "prompt_level_strict_acc_open", max(line.open, strict), N_PROMPTS),
        row(task, "closed_share", line.closed, N_PROMPTS),
        row("new_facts", "accuracy", line.new_facts, 64),
        row("new_instructions", "prompt_level_strict_acc", min(1.0, strict * 1.03), 150),
        row("new_instructions", "obeyed_and_right", line.both, 150),
        row("old_facts", "accuracy", line.old_facts, 80),
        score("heldout_new_domain", "bits_per_byte", line.bits_new, 0.006, 150),
        score("heldout_new_domain", "token_perplexity", 2 ** (3.2 * line.bits_new), None, 150),
        score("heldout_general", "bits_per_byte", line.bits_general, 0.005, 150),
    ]
    for label in TYPES:
        value = min(1.0, max(0.0, strict + generator.uniform(-0.25, 0.12))) if strict else 0.0
        found.append(row(task, f"type/{label}", round(value * 12) / 12, 12))
    return found


def _variant(name: str, line: Line) -> Variant:
    def step(what: str, flops: float, tokens: int = 0) -> RouteStep:
        return RouteStep(name=what, flops=flops, tokens=tokens)

    cpt = step("cpt:base_cpt", CPT, 307_200)
    merged = (cpt, step("residual:main", 1.17e6), step(f"apply:{name}", 2.35e6))
    routes: dict[Kind, tuple[RouteStep, ...]] = {
        "base": (),
        "instruct": (),
        "base_cpt": (cpt,),
        "instruct_cpt": (step("cpt:instruct_cpt", CPT, 307_200),),
        "control": merged[1:],
        "sft": (cpt, step(f"sft:{name}", SFT, 680_000)),
        "replay": (step(f"cpt:{name}", 1.25 * CPT, 384_000),),
    }
    return Variant(
        name=name,
        label=name,
        kind=line.kind,
        alpha=line.alpha,
        route=routes.get(line.kind, merged),
        needs_instruction_data=line.kind in ("sft", "replay"),
    )


_TRAININGS = (
    ("base", "pretrain", 921_600, 450, PRETRAIN, 7.3, 0.95),
    ("instruct", "sft", 680_000, 700, SFT, 2.6, 0.21),
    ("base_cpt", "cpt", 307_200, 150, CPT, 1.75, 0.86),
    ("instruct_cpt", "cpt", 307_200, 150, CPT, 2.1, 0.88),
    ("instruct_cpt_replay", "cpt", 384_000, 188, 1.25 * CPT, 1.9, 0.83),
    ("base_cpt_sft", "sft", 680_000, 700, SFT, 2.7, 0.24),
)


def _trainings(lines: dict[str, Line]) -> tuple[Training, ...]:
    return tuple(
        Training(
            model=model,
            stage=stage,
            tokens=tokens,
            steps=steps,
            flops=flops,
            num_parameters=1_173_696,
            final_loss=end,
            lost_share=None if stage == "pretrain" else 0.021,
        )
        for model, stage, tokens, steps, flops, _, end in _TRAININGS
        if model in lines
    )


def _traces(seed: int, lines: dict[str, Line]) -> dict[str, list[TracePoint]]:
    generator = random.Random(seed)
    return {
        model: [
            TracePoint(
                tokens * step // steps,
                end + (start - end) * math.exp(-9 * step / steps) + generator.gauss(0, 0.04),
            )
            for step in range(1, steps + 1)
        ]
        for model, _, tokens, steps, _, start, end in _TRAININGS
        if model in lines
    }

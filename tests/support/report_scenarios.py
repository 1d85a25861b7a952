"""Made-up but realistic facts for report tests, in the regimes that a verdict must tell apart."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from cpt_residual.config.schema import Goals
from cpt_residual.evaluation.results import ResultRow
from cpt_residual.report.facts import (
    Difference,
    Geometry,
    Kind,
    PromptScores,
    ReportFacts,
    RoleNames,
    RouteStep,
    TensorGeometry,
    TracePoint,
    Training,
    Variant,
)
from cpt_residual.report.pairs import paired_difference
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
ROLES = RoleNames("base", "instruct", "base_cpt", "instruct_cpt", "base_cpt_residual")
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


def facts(
    lines: dict[str, Line] = SUCCESS, *, drift: float = 0.123, seed: int = 0, world: bool = True
) -> ReportFacts:
    """Facts of an experiment; `world=False`: as a run on stock tasks has them (no probes)."""
    order = [*ROLES.core, *(name for name in lines if name not in ROLES.core)]
    prompts = _prompts(lines, seed)
    rows = [row for name in order for row in _rows(name, lines[name], prompts, world=world)]
    return ReportFacts(
        experiment="made_up",
        question="Does the residual keep instruction following after continuous pre-training?",
        seed=seed,
        roles=ROLES,
        variants=tuple(_variant(name, lines[name]) for name in order),
        rows=tuple(rows),
        differences=tuple(_differences(prompts, lines)),
        prompts=(
            PromptScores("strict", "instruction_following", "prompt_level_strict_acc", prompts),
        ),
        trainings=_trainings(seed, lines),
        geometry=_geometry(drift, seed),
        new_corpus="new_domain",
        goals=GOALS,
        provenance=(
            ("chat template", "sha256 0f1e2d3c"),
            ("lm-eval", "0.4.13"),
            ("scorer", "sha256 aa11bb22"),
        ),
        lineage="base_cpt_residual (7c1e90ab) alpha=1.0\n├─ cpt:base_cpt (52d01fce)",
    )


def _prompts(lines: dict[str, Line], seed: int) -> dict[str, dict[str, float]]:
    """About n * strict prompts right (exactly for seed 0); easy prompts are easy for all."""
    generator = random.Random(seed)
    luck = {name: generator.uniform(-0.05, 0.05) if seed else 0.0 for name in lines}
    easy = list(range(N_PROMPTS))
    generator.shuffle(easy)
    values: dict[str, dict[str, float]] = {f"{i:03d}": {} for i in range(N_PROMPTS)}
    for name, line in lines.items():
        jitter = sorted(range(N_PROMPTS), key=lambda i: easy[i] + 40 * generator.random())
        right = set(jitter[: round(N_PROMPTS * min(1.0, line.strict * (1 + luck[name])))])
        for i in range(N_PROMPTS):
            values[f"{i:03d}"][name] = float(i in right)
    return values


def _differences(prompts: dict[str, dict[str, float]], lines: dict[str, Line]) -> list[Difference]:
    pairs = [
        ("instruct", "instruct_cpt"),
        ("instruct", "base_cpt_residual"),
        ("base_cpt_residual", "instruct_cpt"),
        ("base_cpt_residual", "instruct_cpt_replay"),
        ("base_cpt_residual", "base_cpt_sft"),
    ]
    found: list[Difference] = []
    for first, second in pairs:
        if first not in lines or second not in lines:
            continue
        left = [scores[first] for scores in prompts.values()]
        right = [scores[second] for scores in prompts.values()]
        found.append(paired_difference((first, second), "strict", (left, right)))
    for second in ("instruct_cpt", "instruct_cpt_replay", "base_cpt_sft"):
        if second in lines:
            gap = lines["base_cpt_residual"].new_facts - lines[second].new_facts
            found.append(
                Difference(
                    "base_cpt_residual", second, "new_facts", gap, gap - 0.09, gap + 0.09, 1e-6, 64
                )
            )
    return found


def _rows(
    name: str, line: Line, prompts: dict[str, dict[str, float]], *, world: bool
) -> list[ResultRow]:
    generator = random.Random(name)
    strict = sum(scores[name] for scores in prompts.values()) / N_PROMPTS

    def row(task: str, metric: str, value: float, n: int) -> ResultRow:
        stderr = math.sqrt(max(value * (1 - value), 0.0) / n) if value <= 1 else None
        return ResultRow(name, task, metric, value, stderr, n)

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
        ResultRow(name, "heldout_new_domain", "bits_per_byte", line.bits_new, 0.006, 150),
        ResultRow(
            name, "heldout_new_domain", "token_perplexity", 2 ** (3.2 * line.bits_new), None, 150
        ),
        ResultRow(name, "heldout_general", "bits_per_byte", line.bits_general, 0.005, 150),
    ]
    for label in TYPES:
        value = min(1.0, max(0.0, strict + generator.uniform(-0.25, 0.12))) if strict else 0.0
        found.append(row(task, f"type/{label}", round(value * 12) / 12, 12))
    return found


def _variant(name: str, line: Line) -> Variant:
    cpt = RouteStep("cpt:base_cpt", CPT, 307_200)
    residual = (RouteStep("residual:main", 1.17e6, 0), RouteStep(f"apply:{name}", 2.35e6, 0))
    routes: dict[Kind, tuple[RouteStep, ...]] = {
        "base": (),
        "instruct": (),
        "base_cpt": (cpt,),
        "instruct_cpt": (RouteStep("cpt:instruct_cpt", CPT, 307_200),),
        "merged": (cpt, *residual),
        "alpha": (cpt, *residual),
        "donor": (cpt, *residual),
        "control": residual,
        "sft": (cpt, RouteStep(f"sft:{name}", SFT, 680_000)),
        "replay": (RouteStep(f"cpt:{name}", 1.25 * CPT, 384_000),),
    }
    return Variant(name, line.kind, line.alpha, routes[line.kind], line.kind in ("sft", "replay"))


def _trainings(seed: int, lines: dict[str, Line]) -> tuple[Training, ...]:
    generator = random.Random(seed)
    plan = [
        ("base", "pretrain", 921_600, 450, PRETRAIN, 7.3, 0.95),
        ("instruct", "sft", 680_000, 700, SFT, 2.6, 0.21),
        ("base_cpt", "cpt", 307_200, 150, CPT, 1.75, 0.86),
        ("instruct_cpt", "cpt", 307_200, 150, CPT, 2.1, 0.88),
        ("instruct_cpt_replay", "cpt", 384_000, 188, 1.25 * CPT, 1.9, 0.83),
        ("base_cpt_sft", "sft", 680_000, 700, SFT, 2.7, 0.24),
    ]
    found: list[Training] = []
    for model, stage, tokens, steps, flops, start, end in plan:
        if model not in lines:
            continue
        trace = tuple(
            TracePoint(
                tokens * step // steps,
                end + (start - end) * math.exp(-9 * step / steps) + generator.gauss(0, 0.04),
            )
            for step in range(1, steps + 1)
        )
        lost = None if stage == "pretrain" else 0.021
        found.append(
            Training(model, stage, tokens, steps, flops, 1_173_696, trace[-1].loss, lost, trace)
        )
    return tuple(found)


def _geometry(drift: float, seed: int) -> Geometry:
    generator = random.Random(seed)
    tensors: list[TensorGeometry] = []
    modules = (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
        "input_layernorm",
    )
    places = [(layer, module) for layer in range(2) for module in modules]
    for layer, module in [*places, (None, "embed_tokens"), (None, "norm")]:
        values = {
            "drift base_cpt": drift * generator.uniform(0.6, 1.4),
            "drift instruct_cpt": drift * generator.uniform(0.6, 1.4),
            "cosine residual, base_cpt": generator.uniform(-0.06, 0.06),
            "cosine base_cpt, instruct_cpt": generator.uniform(0.1, 0.5),
        }
        name = (
            f"model.layers.{layer}.{module}.weight"
            if layer is not None
            else f"model.{module}.weight"
        )
        tensors.append(TensorGeometry(name, layer, module, values))
    return Geometry(
        drift={"base_cpt": drift, "instruct_cpt": drift * 1.01},
        cosine={
            "residual, base_cpt": 0.004,
            "base_cpt, instruct_cpt": 0.31,
        },
        other={"sign conflict, residual and base_cpt": 0.498},
        tensors=tuple(tensors),
        cells=tuple(cells(4)),
    )

"""Cross-field checks: each contradiction is found and named, all of them at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cpt_residual.config.checks import check
from cpt_residual.config.schema import Experiment
from cpt_residual.config.validate import validate
from cpt_residual.errors import ConfigError

COMMIT = "0" * 40
PRETRAINED = {"kind": "pretrained", "source": "org/name", "revision": COMMIT}
LOCAL = {"kind": "local", "files": ["/x.jsonl"]}
CHECKED = {"filters": {"contamination": {"action": "drop"}}}


def test_tiny_is_consistent(tiny: Experiment) -> None:
    check(tiny)


REFERENCES = [
    (
        ("packs/cpt/tokenizer", "scrach"),
        "packs.cpt.tokenizer: scrach: not one of the models. Did you mean 'scratch'?",
    ),
    (
        ("packs/pretrain/sources/0/corpus", "genral"),
        "packs.pretrain.sources[0].corpus: genral: not one of the corpora. Did you mean 'general'?",
    ),
    (
        ("recipes/cpt/pack", "ctp"),
        "recipes.cpt.pack: ctp: not one of the packs. Did you mean 'cpt'?",
    ),
    (
        ("models/base/start", "scrtch"),
        "models.base.start: scrtch: not one of the models. Did you mean 'scratch'?",
    ),
    (
        ("models/base/recipe", "pretrian"),
        "models.base.recipe: pretrian: not one of the recipes. Did you mean 'pretrain'?",
    ),
    (
        ("models/scratch/tokenizer_corpus", "tokeniser_text"),
        "models.scratch.tokenizer_corpus: tokeniser_text: not one of the corpora. "
        "Did you mean 'tokenizer_text'?",
    ),
    (
        ("models/base_cpt_residual/target", "base_ctp"),
        "models.base_cpt_residual.target: base_ctp: not one of the models. "
        "Did you mean 'base_cpt'?",
    ),
    (
        ("models/base_cpt_residual/residual", "famly"),
        "models.base_cpt_residual.residual: famly: not one of the residuals. "
        "Did you mean 'family'?",
    ),
    (
        ("residuals/donor/base", "doner_base"),
        "residuals.donor.base: doner_base: not one of the models. Did you mean 'donor_base'?",
    ),
    (
        ("residuals/donor/instruct", "zzz"),
        "residuals.donor.instruct: zzz: not one of the models. Known: ",
    ),
    (
        ("suites/heldout/corpora", ["generel"]),
        "suites.heldout.corpora[0]: generel: not one of the corpora. Did you mean 'general'?",
    ),
    (
        ("evaluation/variants", ["bse"]),
        "evaluation.variants[0]: bse: not one of the models. Did you mean 'base'?",
    ),
    (
        ("evaluation/suites", ["wrld"]),
        "evaluation.suites[0]: wrld: not one of the suites. Did you mean 'world'?",
    ),
    (
        ("evaluation/chat_template_of", "instrukt"),
        "evaluation.chat_template_of: instrukt: not one of the models. Did you mean 'instruct'?",
    ),
    (
        ("roles/merged", "base_cpt_residul"),
        "roles.merged: base_cpt_residul: not one of the models. Did you mean 'base_cpt_residual'?",
    ),
    (
        ("launch/threads_for", {"bsae": 2}),
        "launch.threads_for: bsae: not one of the models. Did you mean 'base'?",
    ),
]


@pytest.mark.parametrize(("change", "message"), REFERENCES, ids=lambda each: str(each)[:40])
def test_a_name_that_leads_nowhere_is_named_with_the_nearest(
    problems: Any, change: tuple[str, object], message: str
) -> None:
    (problem,) = problems(change)
    assert problem.startswith(message)


def test_a_role_may_be_left_open(container: dict[str, Any]) -> None:
    container["roles"]["instruct_cpt"] = None
    check(validate(container))


PHASES: list[dict[str, Any]] = [
    {"share": 0.8, "shares": {"new_domain": 0.5, "general": 0.5}},
    {"share": 0.2, "shares": {"new_domain": 0.9, "general": 0.1}},
]
WITHOUT_SHARES = [("packs/cpt/sources/0/share", 1.0), ("packs/cpt/sources/1/share", 1.0)]


def test_phases_replace_the_shares_of_sources(container: dict[str, Any]) -> None:
    container["packs"]["cpt"]["phases"] = PHASES
    for source in container["packs"]["cpt"]["sources"]:
        source["share"] = 1.0
    experiment = validate(container)
    check(experiment)
    shares = experiment.packs["cpt"].shares
    assert shares == (0.58, 0.42), "to the bit: sums of floats differ between versions of Python"


@pytest.mark.parametrize(
    ("phases", "expected"),
    [
        (
            [PHASES[0]],
            ["packs.cpt.phases: shares 0.8 = 0.8: must sum to 1"],
        ),
        (
            [{"share": 1.0, "shares": {"new_domain": 0.7, "genral": 0.3}}],
            [
                "packs.cpt.phases[0].shares: genral: not one of the sources: new_domain, general",
                "packs.cpt.phases: general: no phase gives it a share",
            ],
        ),
        (
            [{"share": 1.0, "shares": {"new_domain": 0.7, "general": 0.2}}],
            ["packs.cpt.phases[0].shares: shares 0.7 + 0.2 = 0.9: must sum to 1"],
        ),
    ],
)
def test_phases_that_contradict(
    problems: Any, phases: list[dict[str, Any]], expected: list[str]
) -> None:
    assert problems(*WITHOUT_SHARES, ("packs/cpt/phases", phases)) == expected


def test_phases_and_shares_of_sources_exclude_each_other(problems: Any) -> None:
    assert problems(("packs/cpt/phases", PHASES)) == [
        "packs.cpt.sources[0].share: 0.5: the phases say the shares",
        "packs.cpt.sources[1].share: 0.5: the phases say the shares",
    ]


def test_dialogues_are_not_packed_otherwise(problems: Any) -> None:
    assert problems(("packs/sft/sources/0/packing", "best_fit")) == [
        "packs.sft.sources[0].packing: best_fit: dialogues are always whole"
    ]


SIZES = [
    (
        [("packs/cpt/sources/0/share", 0.00001), ("packs/cpt/sources/1/share", 0.99999)],
        [
            "packs.cpt: new_domain: share 1e-05 of token_budget 245760 is 2 tokens, less "
            "than a row (sequence_length 128)"
        ],
    ),
    (
        [("packs/cpt/sources/0/share", 0.4)],
        ["packs.cpt.sources: shares 0.4 + 0.5 = 0.9: must sum to 1"],
    ),
    (
        [("recipes/cpt/global_batch_tokens", 2000)],
        [
            "recipes.cpt.global_batch_tokens: 2000: must be a multiple of "
            "packs.cpt.sequence_length=128"
        ],
    ),
    (
        [("recipes/cpt/global_batch_tokens", 384), ("launch/num_processes", 2)],
        [
            "recipes.cpt.global_batch_tokens: 384: 3 rows per step cannot be shared evenly by "
            "launch.num_processes=2"
        ],
    ),
    (
        [("recipes/cpt/warmup_steps", 500), ("recipes/cpt/learning_rate", 1.0e-3)],
        [
            "recipes.cpt.warmup_steps: 500: packs.cpt.token_budget=245760 is spent in 120 "
            "step(s), so learning_rate=0.001 is never reached"
        ],
    ),
    (
        [("recipes/sft/warmup_steps", 1_000_000)],
        [
            "recipes.sft.warmup_steps: 1000000: packs.sft.token_budget=584000 is spent in at most "
            "73000 step(s), so learning_rate=0.001 is never reached"
        ],
    ),
    (
        [("packs/cpt/sequence_length", 512)],
        [
            f"packs.cpt.sequence_length: 512: model {model} has max_position_embeddings=256"
            for model in ("base_cpt", "instruct_cpt")
        ],
    ),
    (
        [("models/scratch/architecture/hidden_size", 190)],
        ["models.scratch.architecture.hidden_size: 190: not a multiple of num_heads=4"],
    ),
    (
        [("models/scratch/architecture/hidden_size", 12)],
        [
            "models.scratch.architecture.hidden_size: 12: rotary positions need heads of even "
            "size, not 3"
        ],
    ),
    (
        [("models/scratch/architecture/num_key_value_heads", 3)],
        ["models.scratch.architecture.num_heads: 4: not a multiple of num_key_value_heads=3"],
    ),
    (
        [("models/scratch/architecture/vocab_size", 100)],
        [
            "models.scratch.architecture.vocab_size: 100: a byte-level tokenizer needs at least "
            "261 (every byte and the special tokens)"
        ],
    ),
    (
        [("residuals/donor/base", "donor_instruct")],
        ["residuals.donor: base and instruct are both donor_instruct: the residual is 0"],
    ),
    (
        [("packs/pretrain/sources/0/format", "chat")],
        ["packs.pretrain.sources[0].format: chat: corpus general holds text"],
    ),
    (
        [("packs/sft/sources/0/format", "text")],
        ["packs.sft.sources[0].format: text: corpus instructions holds chat"],
    ),
    (
        [("suites/heldout/corpora", ["instructions"])],
        [
            "suites.heldout.corpora[0]: instructions: part instructions has no held-out "
            "documents; only general, new_domain have"
        ],
    ),
    (
        [("corpora/new_domain", LOCAL)],
        ["suites.heldout.corpora[0]: new_domain: its heldout_documents is 0"],
    ),
    (
        [
            ("corpora/new_domain", LOCAL | {"heldout_documents": 1} | CHECKED),
            ("evaluation/suites", ["heldout"]),
        ],
        [
            "corpora.new_domain.filters.contamination: none of evaluation.suites asks questions "
            "that could be looked for; set it to null"
        ],
    ),
    (
        [("deepspeed/offload_optimizer", True)],
        ["deepspeed.offload_optimizer: true: needs zero_stage 1, 2 or 3, not off"],
    ),
    (
        [("evaluation/variants", ["base", "instruct", "base"])],
        ["evaluation.variants: base: listed 2 times"],
    ),
    (
        [("contrasts/kept/measures", ["instruction_folowing", "new_facts/accuracy"])],
        [
            "contrasts.kept.measures: instruction_folowing: neither a role nor a measure. "
            "Did you mean 'instruction_following'?"
        ],
    ),
    (
        [("contrasts/kept/variants", [])],
        ["contrasts.kept: no variants: name some, or kinds of them"],
    ),
    (
        [("variants/instruct", {"kind": "sft"})],
        ["variants.instruct.kind: its kind follows from roles; state a label only"],
    ),
    (
        [("suites/heldout/corpora", ["general", "general"])],
        ["suites.heldout.corpora: general: listed 2 times"],
    ),
]


@pytest.mark.parametrize(("changes", "messages"), SIZES, ids=lambda each: str(each)[:60])
def test_values_that_do_not_fit_together(
    problems: Any, changes: list[tuple[str, object]], messages: list[str]
) -> None:
    assert problems(*changes) == messages


def test_a_world_is_needed_by_its_corpora_and_probes(problems: Any) -> None:
    found = problems(("world", None))
    assert "corpora.general: part=general: needs `world`, which is not set" in found
    assert "suites.world: probes of the world need `world`, which is not set" in found
    assert len(found) == 7


def test_a_cycle_is_named_in_full(problems: Any) -> None:
    assert problems(("models/base/start", "base_cpt")) == [
        "models: base <- base_cpt <- base: a model needs itself"
    ]


def test_a_cycle_through_a_tokenizer_or_a_residual_is_found(problems: Any) -> None:
    assert problems(("packs/cpt/tokenizer", "base_cpt")) == [
        "models: base_cpt <- base_cpt: a model needs itself"
    ]
    found = problems(
        ("packs/cpt/tokenizer", "scratch"), ("residuals/family/instruct", "base_cpt_residual")
    )
    assert "models: base_cpt_residual <- base_cpt_residual: a model needs itself" in found


def test_a_hub_model_needs_a_commit(problems: Any) -> None:
    assert problems(("models/scratch", {**PRETRAINED, "revision": None})) == [
        "models.scratch.revision: required for org/name, which is not a directory here: "
        "the commit of the hub's model"
    ]


@pytest.mark.parametrize("source", ["/no/such", "./no", "~/no-such-directory"])
def test_a_path_that_does_not_exist(problems: Any, source: str) -> None:
    assert problems(("models/scratch", {**PRETRAINED, "source": source})) == [
        f"models.scratch.source: {source}: no such directory"
    ]


def test_a_directory_has_no_commit(problems: Any, tmp_path: Path) -> None:
    assert problems(("models/scratch", {**PRETRAINED, "source": str(tmp_path)})) == [
        f"models.scratch.revision: {COMMIT}: {tmp_path} is a directory; set null"
    ]


def test_released_models_pass(container: dict[str, Any], tmp_path: Path) -> None:
    container["models"]["scratch"] = PRETRAINED
    check(validate(container))
    container["models"]["scratch"] = {"kind": "pretrained", "source": str(tmp_path)}
    check(validate(container))


def test_everything_is_said_at_once(container: dict[str, Any]) -> None:
    container["packs"]["cpt"]["sources"][0]["share"] = 0.1
    container["recipes"]["sft"]["global_batch_tokens"] = 100
    container["deepspeed"]["offload_optimizer"] = True
    with pytest.raises(ConfigError) as caught:
        check(validate(container))
    assert caught.value.what == "experiment tiny contradicts itself (3 problems)"
    assert len(caught.value.problems) == 3

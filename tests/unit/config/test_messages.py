"""What bad input gets, word for word: `tests/golden/config/errors.txt`.

After a wanted change: UPDATE_GOLDEN=1 python -m pytest tests/unit/config/test_messages.py
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest

from cpt_residual.config.compose import compose, experiment_names
from cpt_residual.errors import ConfigError

GOLDEN = Path(__file__).parents[2] / "golden" / "config" / "errors.txt"
CASES = [
    "+experiment=tinny",
    "+experiment=",
    "experiment=null",
    "~experiment",
    "experiment=tiny experiment=tiny_high_drift",
    "deepspeed=zero9",
    "deepspeeed=zero2",
    "family=null",
    "nosuch/group=x",
    "+nosuch@here=x",
    "sed=1 launch.num_proceses=2",
    "+train.token_bugdet=9",
    "models.bsae.source=/x",
    "models.bsae.source=/x models.base_cpt.strat=base seed=-1",
    "recipes.cptt.learning_rate=1.0",
    "contrasts.kept.against=intruct verdict.contrasts=kpt variants.base_cptt.label=x",
    "models.base_cpt_residual.alpah=2",
    "seed=",
    "seed",
    "seed seed==",
    "'a b=1'",
    "'seed=a b: ]'",
    "trainig.x=1",
    "training.x=1",
    "paths.root=",
    "corpora.new_domain.files=[a]",
    "=3",
    "seed=1,2",
    "hydra.run.dir=x",
    "recipes.cpt.learning_rate=-1 seed=x recipes.cpt.schedule=cosin launch.cores=1.5",
    "recipes.cpt.learning_rate=inf",
    "corpora.new_domain.kind=locl",
    "+corpora.x.files=[a]",
    "seed.x=1",
    "seed=true",
    "launch.gradient_checkpointing=1",
    "corpus=local +experiment=llama3_500m",
    "corpora.new_domain.revision=main +experiment=llama3_500m",
    "'corpora.new_domain={kind:local,files:[],part:null}'",
    "+models._x.kind=init",
    "launch.threads_for=3",
    "evaluation=nothing",
    "evaluation.variants=base",
    "evaluation.variants=[]",
    "evaluation.suites=[heldot]",
    "'paths.root=${nope}'",
    "name=null",
    "~seed",
    "~nothing",
    "+models.bsae.source=/x",
    "packs.cpt.sources.7.share=0.4",
    "packs.cpt.sequence_length=1",
    "'corpora.new_domain={kind:local,files:[\"\"],content_sha256:zz,part:null}'",
    "packs.cpt.sources.0.shar=0.4",
    "deepspeed.zero_stage=4",
]


def said(case: str) -> str:
    with pytest.raises(ConfigError) as caught:
        compose(shlex.split(case))
    names = ", ".join(experiment_names())  # a new experiment is no new message
    return f"$ {case}\n{caught.value}\n".replace(names, "<every experiment>")


def test_messages_are_the_golden_ones() -> None:
    text = "\n".join(said(case) for case in CASES)
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()


def test_hydra_never_shows() -> None:
    text = GOLDEN.read_text()
    for word in (
        "Traceback",
        "omegaconf",
        "object_type",
        "ConfigCompositionException",
        "++",
        "token rec",
    ):
        assert word not in text

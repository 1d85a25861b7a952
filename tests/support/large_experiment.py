"""`+experiment=llama3_500m` on pico models and local text, by overrides alone."""

from __future__ import annotations

import json
import pydoc_data.topics
from pathlib import Path

REVISION = "0123456789" * 4


def text_corpus(path: Path) -> Path:
    """Sixty documents of the Python language reference."""
    texts = [text[:2000] for text in pydoc_data.topics.topics.values()][:60]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def large_overrides(models: dict[str, Path], corpus: Path) -> list[str]:
    """Overrides for local models `base` and `instruct`; suites: held-out text alone."""
    return [
        "+experiment=llama3_500m",
        *(f"models.{key}.source={models[key]}" for key in ("base", "instruct")),
        *(f"models.{key}.revision=null" for key in ("base", "instruct")),
        *(f"models.{key}.num_parameters=null" for key in ("base", "instruct")),
        "corpus=local",
        f"corpora.new_domain.files=[{corpus}]",
        "corpora.new_domain.heldout_documents=5",
        "packs.cpt.sequence_length=64",
        "packs.cpt.token_budget=64001",  # the last row and the last step are not full
        "recipes.cpt.global_batch_tokens=8192",
        "recipes.cpt.warmup_steps=2",
        "recipes.cpt.learning_rate=1.0e-3",
        "recipes.cpt.precision=fp32",
        "suite=[ifeval,paper,heldout,cloze]",
        "evaluation.suites=[heldout]",
        "evaluation.precision=fp32",
        "launch=local",
        "launch.device=cpu",
        "tracking=off",
    ]


def hub_cache(cache: Path, models: dict[str, Path]) -> list[str]:
    """Lays `models` into a hub cache as a download does; overrides that name them there."""
    for key, folder in models.items():
        snapshot = cache / f"models--org--{key}" / "snapshots" / REVISION
        snapshot.parent.mkdir(parents=True)
        snapshot.symlink_to(folder)
    return [
        override
        for key in models
        for override in (f"models.{key}.source=org/{key}", f"models.{key}.revision={REVISION}")
    ]

"""Tokens per second of the training stage, beside a training loop written by hand.

    python benchmarks/training.py

Both train the tiny experiment's model from the same random weights on the same pack (40 steps of
2,048 tokens, one torch thread, fp32), alternated in one process. The hand-written loop does nothing
but forward, backward, clip, AdamW and the schedule: what the stage adds (Trainer, accounting,
checkpoints, guards, writing the model) is the difference. Result: results/training.json.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from pathlib import Path

import torch
from harness import keep
from transformers import get_scheduler

from cpt_residual.config.compose import compose
from cpt_residual.config.schema import Experiment
from cpt_residual.core.stage import no_progress
from cpt_residual.data.packing.pack_format import open_pack
from cpt_residual.modeling.loading import load_causal_lm
from cpt_residual.stages.execute import Builder, BuildRequest
from cpt_residual.train.job import TrainJob
from cpt_residual.train.worker import run

RUNS = 5
STEPS = 40
TOKENS_PER_STEP = 2048


def prepared(root: Path) -> tuple[Experiment, Path, Path]:
    """The experiment, its untrained model and its pack, built below `root`."""
    budget = STEPS * TOKENS_PER_STEP
    overrides = ["+experiment=tiny", "tracking=off", f"paths.root={root}"]
    builder = Builder.of(compose([*overrides, f"packs.pretrain.token_budget={budget}"]))
    folders: dict[str, Path] = {}
    for node in ("world", "scratch", "pack:pretrain"):
        request = BuildRequest(builder.experiment, node, root)
        folders[node] = builder.build(request, no_progress).ref.path
    return builder.experiment, folders["scratch"], folders["pack:pretrain"]


def ours(experiment: Experiment, model: Path, pack: Path, folder: Path) -> float:
    job = TrainJob(
        start=model,
        pack=pack,
        tokenizer=model,
        out=folder / "out",
        scratch=folder / "scratch",
        recipe=experiment.recipes["pretrain"],
        seed=0,
        threads=1,
        launch=experiment.launch,
        deepspeed=experiment.deepspeed,
    )
    started = time.process_time()
    run(job, progress=no_progress, metrics=None)
    return time.process_time() - started


def by_hand(experiment: Experiment, model_dir: Path, pack_dir: Path) -> float:
    torch.set_num_threads(1)
    recipe = experiment.recipes["pretrain"]
    started = time.process_time()
    model, pack = load_causal_lm(model_dir, dtype=torch.float32), open_pack(pack_dir)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": rest}],
        lr=recipe.learning_rate,
        betas=(recipe.adam_beta1, recipe.adam_beta2),
    )
    schedule = get_scheduler(
        "cosine_with_min_lr",
        optimizer,
        num_warmup_steps=recipe.warmup_steps,
        num_training_steps=STEPS,
        scheduler_specific_kwargs={"min_lr_rate": recipe.min_learning_rate_ratio},
    )
    rows = TOKENS_PER_STEP // pack.sequence_length
    for step in range(STEPS):
        columns = zip(*(pack.row(i) for i in range(step * rows, (step + 1) * rows)), strict=True)
        ids, positions, labels = (torch.stack([torch.from_numpy(r) for r in c]) for c in columns)
        out = model(input_ids=ids, position_ids=positions, labels=labels, use_cache=False)
        out.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return time.process_time() - started


def main() -> None:
    seconds: dict[str, list[float]] = {"ours": [], "by_hand": []}
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        experiment, model, pack = prepared(root)
        ours(experiment, model, pack, root / "warm")  # imports and caches
        for number in range(RUNS):
            folder = root / str(number)
            seconds["ours"].append(ours(experiment, model, pack, folder))
            seconds["by_hand"].append(by_hand(experiment, model, pack))
            shutil.rmtree(folder)
    tokens = STEPS * TOKENS_PER_STEP
    rates = {name: tokens / statistics.median(values) for name, values in seconds.items()}
    ratio = rates["ours"] / rates["by_hand"]
    result = {"cpu_seconds": seconds, "tokens_per_cpu_second": rates, "ratio_to_by_hand": ratio}
    path = keep("training", result)
    print(
        f"ours {rates['ours']:,.0f}, by hand {rates['by_hand']:,.0f} tokens per CPU second: {path}"
    )


if __name__ == "__main__":
    main()

"""Training in this process: the losses are right, the model is whole, nothing is left behind."""

from __future__ import annotations

import gc
import json
import os
import random
import shutil
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, get_scheduler

from cpt_residual.config.schema import TrainRecipe
from cpt_residual.core.stage import Metrics
from cpt_residual.data.packing.pack_format import open_pack
from cpt_residual.errors import CompatibilityError, ConfigError, WorkerError
from cpt_residual.modeling.loading import load_causal_lm
from cpt_residual.train.job import TrainJob
from cpt_residual.train.worker import run
from support.staged import contents
from support.training import LENGTH, PICO, job, write_model, write_pack

NUM_ROWS = 22  # 5 whole steps of 4 rows, and 2 rows more


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("start") / "model")


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    return write_pack(tmp_path_factory.mktemp("data") / "pack", model, num_rows=NUM_ROWS)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, model: Path, pack: Path) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    train(job(folder, model, pack))
    return folder / "out"


def train(training: TrainJob) -> Metrics:
    return run(training, progress=lambda *_: None, metrics=None)


def trace(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "trace.jsonl").read_text().splitlines()]


def losses(out: Path) -> list[float]:
    return [row["loss"] for row in trace(out)]


def plain_loop(model: Path, pack: Path, recipe: TrainRecipe) -> list[float]:
    """The same training written by hand, without filler: the last step simply has 2 rows."""
    net = cast("Any", load_causal_lm(model, dtype=torch.float32))
    view, rows_per_step = open_pack(pack), recipe.global_batch_tokens // LENGTH
    decayed = [p for n, p in net.named_parameters() if "norm" not in n]
    others = [p for n, p in net.named_parameters() if "norm" in n]
    optimizer = torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": recipe.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ],
        lr=recipe.learning_rate,
        betas=(recipe.adam_beta1, recipe.adam_beta2),
        eps=recipe.adam_epsilon,
    )
    steps = -(-len(view) // rows_per_step)
    schedule = get_scheduler(
        "cosine_with_min_lr",
        optimizer,
        num_warmup_steps=recipe.warmup_steps,
        num_training_steps=steps,
        scheduler_specific_kwargs={"min_lr_rate": recipe.min_learning_rate_ratio},
    )
    found: list[float] = []
    for start in range(0, len(view), rows_per_step):
        rows = [view.row(n) for n in range(start, min(start + rows_per_step, len(view)))]
        ids, positions, labels = (
            torch.from_numpy(np.stack(column)) for column in zip(*rows, strict=True)
        )
        loss = net(input_ids=ids, position_ids=positions, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), recipe.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        found.append(float(loss.detach()))
    return found


def test_losses_are_those_of_a_loop_written_by_hand(
    trained: Path, model: Path, pack: Path, tmp_path: Path
) -> None:
    """Also shows that filler rows change nothing: the loop has none."""
    expected = plain_loop(model, pack, job(tmp_path, model, pack).recipe)
    assert len(expected) == 6
    assert losses(trained) == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize("micro_batch_rows", [1, 3, 4])
def test_losses_do_not_depend_on_accumulation(
    trained: Path, model: Path, pack: Path, tmp_path: Path, micro_batch_rows: int
) -> None:
    train(job(tmp_path, model, pack, launch={"micro_batch_rows": micro_batch_rows}))
    assert losses(tmp_path / "out") == pytest.approx(losses(trained), abs=2e-6)


def test_gradient_checkpointing_changes_nothing(
    trained: Path, model: Path, pack: Path, tmp_path: Path
) -> None:
    train(job(tmp_path, model, pack, launch={"gradient_checkpointing": True}))
    assert losses(tmp_path / "out") == pytest.approx(losses(trained), abs=2e-6)


def test_a_last_step_without_a_single_label_is_no_division_by_zero(
    model: Path, tmp_path: Path
) -> None:
    """What a token budget can leave: one token, the start of a document, in a step of its own."""
    pack = write_pack(tmp_path / "pack", model, num_rows=9, last=1)
    metrics = train(job(tmp_path, model, pack))
    rows = trace(tmp_path / "out")
    assert [row["loss"] > 0 for row in rows] == [True, True, False]
    assert rows[-1]["grad_norm"] == 0
    assert metrics["final_loss"] == rows[-2]["loss"]


def test_two_runs_give_the_same_bytes(
    trained: Path, model: Path, pack: Path, tmp_path: Path
) -> None:
    train(job(tmp_path, model, pack))
    assert contents(tmp_path / "out") == contents(trained)


def test_the_trace_and_the_metrics(model: Path, pack: Path, tmp_path: Path) -> None:
    series: list[tuple[int, int]] = []
    done: list[tuple[int, int, str]] = []

    class Sink:
        def log(self, values: object, *, tokens: int, step: int) -> None:
            series.append((step, tokens))

    metrics = run(
        job(tmp_path, model, pack), progress=lambda *report: done.append(report), metrics=Sink()
    )
    rows = trace(tmp_path / "out")
    total = (NUM_ROWS - 1) * LENGTH + LENGTH // 2
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row["tokens"] for row in rows] == [64, 128, 192, 256, 320, total]
    assert rows[0]["learning_rate"] == 0.0
    assert rows[2]["learning_rate"] == 1e-2  # the end of two warm-up steps
    assert series == [(int(row["step"]), int(row["tokens"])) for row in rows]
    assert done[-1] == (total, total, "tokens")
    assert metrics == {
        "tokens": total,
        "steps": 6,
        "num_parameters": 27552,
        "flops": metrics["flops"],
        "final_loss": rows[-1]["loss"],
    }


def test_flops_are_counted_for_every_row_of_every_step(
    model: Path, pack: Path, tmp_path: Path
) -> None:
    """Forward of a row: 2 per weight and token in matrix products, and 4 T hidden per layer and
    token in attention; backward is twice that."""
    metrics = train(job(tmp_path, model, pack))
    weights = 27552 - 5 * PICO.hidden_size  # norms are not matrix products; the tied head is one
    per_token = 2 * weights + 4 * LENGTH * PICO.hidden_size * PICO.num_layers
    # The first layer's input needs no gradient of the embedding lookup, which costs nothing.
    assert metrics["flops"] == 3 * per_token * LENGTH * 24


def test_the_model_directory_is_whole(trained: Path, model: Path) -> None:
    start = load_file(model / "model.safetensors")
    after = load_file(trained / "model.safetensors")
    assert {name: tensor.shape for name, tensor in after.items()} == {
        name: tensor.shape for name, tensor in start.items()
    }
    assert all(tensor.dtype == torch.float32 for tensor in after.values())
    moved = [name for name, tensor in after.items() if not torch.equal(tensor, start[name])]
    assert len(moved) == len(after)
    for name in (
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ):
        assert json.loads((trained / name).read_text()) == json.loads((model / name).read_text())
    assert (trained / "chat" / "chat_template.jinja").exists()
    net = AutoModelForCausalLM.from_pretrained(trained)
    assert net.config.use_cache is True
    assert len(AutoTokenizer.from_pretrained(trained)) == PICO.vocab_size


def test_only_the_models_own_files_are_carried_over(
    trained: Path, model: Path, pack: Path, tmp_path: Path
) -> None:
    """A published start model lies beside its manifest and its trace."""
    start = Path(shutil.copytree(model, tmp_path / "start"))
    for name in ("manifest.json", "receipt.json", "trace.jsonl", "README.md"):
        (start / name).write_text("{}")
    train(job(tmp_path, start, pack))
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == sorted(path.name for path in trained.iterdir())


def test_bf16_keeps_the_dtype_of_the_start_and_reports_what_rounding_lost(
    model: Path, pack: Path, tmp_path: Path
) -> None:
    start = Path(shutil.copytree(model, tmp_path / "start"))
    config = json.loads((start / "config.json").read_text()) | {"dtype": "bfloat16"}
    (start / "config.json").write_text(json.dumps(config))
    weights = {k: v.bfloat16() for k, v in load_file(model / "model.safetensors").items()}
    save_file(weights, start / "model.safetensors", metadata={"format": "pt"})
    metrics = train(job(tmp_path, start, pack, precision="bf16", learning_rate=1e-4))
    out = load_file(tmp_path / "out" / "model.safetensors")
    assert all(tensor.dtype == torch.bfloat16 for tensor in out.values())
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    # Steps of 1e-4 against weights of 0.1 with 8 bits: much is lost, and it is said.
    assert isinstance(metrics["lost_share"], float)
    assert 0.2 < metrics["lost_share"] < 0.95
    unchanged = sum(int((out[k] == weights[k]).sum()) for k in weights)
    total = sum(tensor.numel() for tensor in weights.values())
    assert metrics["lost_share"] == pytest.approx(unchanged / total, abs=0.05)


def legacy_numpy_state() -> list[int]:
    return np.random.get_state()[1].tolist()  # noqa: NPY002


def test_nothing_is_left_behind(model: Path, pack: Path, tmp_path: Path) -> None:
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002 - the generator that Trainer seeds
    torch.manual_seed(5)
    environment, threads = dict(os.environ), torch.get_num_threads()
    states = (random.getstate(), legacy_numpy_state(), torch.get_rng_state().tolist())
    train(job(tmp_path, model, pack))
    assert dict(os.environ) == environment
    assert torch.get_num_threads() == threads
    assert random.getstate() == states[0]
    assert legacy_numpy_state() == states[1]
    assert torch.get_rng_state().tolist() == states[2]
    assert AcceleratorState._shared_state == {}
    assert PartialState._shared_state == {}
    gc.collect()
    # Not isinstance: among all objects are weak references of other libraries whose target is gone.
    alive = [thing for thing in gc.get_objects() if torch.nn.Parameter in type(thing).__mro__]
    assert alive == []


def test_a_pack_of_another_tokenizer_is_refused(model: Path, pack: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(model, tmp_path / "other"))
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    swapped = {vocabulary["A"]: "B", vocabulary["B"]: "A"}
    tokenizer["model"]["vocab"] = {swapped.get(i, token): i for token, i in vocabulary.items()}
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    training = job(tmp_path, other, pack).model_copy(update={"tokenizer": model})
    with pytest.raises(CompatibilityError) as caught:
        train(training)
    text = str(caught.value)
    assert "not written with the start model's tokenizer" in text
    assert f"id {vocabulary['A']}: 'A' vs 'B'" in text
    assert "Set pack.tokenizer" in text


def test_rows_longer_than_the_model_are_refused(model: Path, tmp_path: Path) -> None:
    pack = write_pack(tmp_path / "long", model, num_rows=2, length=128)
    with pytest.raises(CompatibilityError, match="128 tokens, positions: 64"):
        train(job(tmp_path, model, pack, global_batch_tokens=256))


def test_weights_that_do_not_fit_the_config_are_refused(
    model: Path, pack: Path, tmp_path: Path
) -> None:
    start = Path(shutil.copytree(model, tmp_path / "start"))
    weights = load_file(start / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, start / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CompatibilityError, match=r"missing: model\.norm\.weight"):
        train(job(tmp_path, start, pack))


def test_divergence_names_its_step_and_writes_no_model(
    model: Path, pack: Path, tmp_path: Path
) -> None:
    with pytest.raises(WorkerError, match="training diverged at step"):
        train(job(tmp_path, model, pack, learning_rate=1e20, warmup_steps=0))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("num_processes", [1, 2])
def test_a_warmup_that_outlasts_the_pack_is_refused_before_training(
    model: Path, pack: Path, tmp_path: Path, num_processes: int
) -> None:
    late = job(tmp_path, model, pack, launch={"num_processes": num_processes}, warmup_steps=6)
    with pytest.raises(ConfigError, match="warmup_steps=6 is not shorter than the training of 6"):
        train(late)
    assert not late.out.exists()
    assert not late.checkpoints.exists()


def test_the_longest_warmup_that_reaches_its_learning_rate(
    model: Path, pack: Path, tmp_path: Path
) -> None:
    train(job(tmp_path, model, pack, warmup_steps=5))
    assert max(row["learning_rate"] for row in trace(tmp_path / "out")) == 1.0e-2

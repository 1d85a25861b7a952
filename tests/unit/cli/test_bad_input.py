"""Bad input: each refused before the output is touched, with a message that names it."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest

from cpt_residual.core import disk
from support.cli_family import APPLY, PAIR, Run, tensors
from support.pico_family import read_all, write_weights


def truncated(family: Path) -> None:
    shard = min((family / "cpt").glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-10])


def cut_header(family: Path) -> None:
    shard = family / "base/model.safetensors"
    shard.write_bytes(shard.read_bytes()[:20])


def index_outside(family: Path) -> None:
    path = family / "cpt/model.safetensors.index.json"
    index = json.loads(path.read_text())
    name = next(iter(index["weight_map"]))
    index["weight_map"][name] = "../base/model.safetensors"
    path.write_text(json.dumps(index))


def missing_tensor(family: Path) -> None:
    kept = tensors(1)
    del kept["model.norm.weight"]
    write_weights(family / "instruct", kept)


def extra_tensor(family: Path) -> None:
    write_weights(family / "base", tensors(0, model__extra__weight=(4,)))


def wrong_shape(family: Path) -> None:
    write_weights(family / "instruct", tensors(1, model__norm__weight=(9,)))


def broken_value(model: str, value: float) -> Callable[[Path], None]:
    def edit(family: Path) -> None:
        found = read_all(family / model)
        found["model.norm.weight"][3] = value
        write_weights(family / model, found, num_shards=3 if model == "cpt" else 1)

    return edit


def mixed_family(family: Path) -> None:
    path = family / "instruct/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "qwen2"}))


def adapter(family: Path) -> None:
    shutil.rmtree(family / "base")
    (family / "base").mkdir()
    (family / "base/adapter_config.json").write_text("{}")


def pickles(family: Path) -> None:
    (family / "base/model.safetensors").rename(family / "base/pytorch_model.bin")


def link_outside(family: Path) -> None:
    elsewhere = (family / "base/model.safetensors").rename(family / "elsewhere.safetensors")
    (family / "base/model.safetensors").symlink_to(elsewhere)


def other_tokens(family: Path) -> None:
    path = family / "cpt/tokenizer.json"
    fields = json.loads(path.read_text())
    vocab = fields["model"]["vocab"]
    left, right = [token for token, number in vocab.items() if number in (100, 101)]
    vocab[left], vocab[right] = vocab[right], vocab[left]
    path.write_text(json.dumps(fields))


def taken(family: Path) -> None:
    (family / "o").mkdir()
    (family / "o/file").write_text("mine")


def no_template(family: Path) -> None:
    (family / "instruct/chat_template.jinja").unlink()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (truncated, ["cannot be trusted", "is truncated"]),
        (cut_header, ["model.safetensors", "cut inside its header"]),
        (index_outside, ["'../base/model.safetensors': the index points outside"]),
        (missing_tensor, ["model.norm.weight", "missing"]),
        (extra_tensor, ["model.extra.weight", "missing"]),
        (wrong_shape, ["model.norm.weight", "(8,)", "(9,)"]),
        (broken_value("cpt", float("nan")), ["model.norm.weight", "not finite"]),
        (broken_value("base", float("nan")), ["model.norm.weight", "not finite"]),
        (broken_value("instruct", float("inf")), ["model.norm.weight", "not finite"]),
        (mixed_family, ["config.json model_type", "qwen2", "llama"]),
        (adapter, ["is a LoRA adapter, not a model"]),
        (pickles, ["holds pickle weights only", "pytorch_model.bin"]),
        (link_outside, ["a link that leaves the directory"]),
        (other_tokens, ["id 100", "id 101"]),
        (taken, ["The output o exists and is not an empty directory"]),
        (no_template, ["has no chat template"]),
    ],
)
def test_bad_input_is_refused_and_leaves_nothing(
    family: Path, run: Run, spoil: Callable[[Path], None], said: list[str]
) -> None:
    spoil(family)
    before = sorted(family.rglob("*"))
    done = run(*APPLY, "--out", "o", "--json")
    assert done.status == 2, done.stdout
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    for words in said:
        assert words in done.stderr
    assert sorted(family.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--alpha", "nan"], ["alpha nan is not a finite number"]),
        (["--alpha", "1", "--alpha", "1.0"], ["alpha 1.0 is given more than once"]),
        (["--scale", "attentoin=0.5"], ["attentoin", "Did you mean 'attention'?"]),
        (["--scale", "attention"], ["--scale attention: not PATTERN=FACTOR"]),
        (["--scale", "attention=nan"], ["--scale attention", "finite number"]),
        (["--scale", "mlp=1", "--scale", "mlp=2"], ["mlp is given more than once"]),
        (["--density", "0.5"], ["--density belongs to --method ties"]),
        (["--method", "ties", "--density", "1.5"], ["--density", "less than or equal to 1"]),
        (["--method", "low_rank"], ["give either rank or explained_variance"]),
        (["--method", "tise"], ["tise"]),
        (["--cpt-strength", "inf"], ["--cpt-strength", "finite number"]),
        (["--alpha", "1", "--alpha", "2", "--push", "org/name"], ["2 alphas, and one repository"]),
        (["--push", "name"], ["name is not a name on the hub"]),
        (["--push", "org/name"], ["there is no token for the hub"]),
        (["--residual", "r"], ["It is not clear what to add to the target"]),
        (["--threads", "0"], ["--threads"]),
    ],
)
def test_options_that_make_no_sense(
    family: Path,
    run: Run,
    arguments: list[str],
    said: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    done = run(*APPLY, *arguments, "--out", "o")
    assert done.status == 2
    assert "Traceback" not in done.stderr
    for words in said:
        assert words in done.stderr
    assert not (family / "o").exists()


def test_a_recipe_that_needs_a_base_says_so(family: Path, run: Run) -> None:
    run("compute", *PAIR, "--out", "r")
    stored = ("apply", "--target", "cpt", "--residual", "r", "--no-verify")
    for options in (["--method", "ties"], ["--cpt-strength", "2"], ["--auto-alpha", "projection"]):
        done = run(*stored, *options, "--out", "o")
        assert done.status == 2
        assert "needs the base that CPT started from" in done.stderr
        assert options[1] in done.stderr
        assert "--target-base" in done.stderr
    given = run(*stored, "--method", "ties", "--target-base", "base", "--out", "o")
    assert given.status == 0, given.stderr
    roles = [each["role"] for each in json.loads((family / "o/merge.json").read_text())["inputs"]]
    assert roles == ["target", "residual", "base", "instruct", "target_base"]


def test_an_adapter_as_target_needs_its_base(family: Path, run: Run) -> None:
    run("compute", *PAIR, "--out", "r")
    (family / "lora").mkdir()
    (family / "lora/adapter_config.json").write_text("{}")
    done = run("apply", "--target", "lora", "--residual", "r", "--out", "o")
    assert done.status == 2
    assert "is a LoRA adapter, and its base is not given" in done.stderr
    assert not (family / "o").exists()


def test_a_place_that_cannot_be_written(family: Path, run: Run) -> None:
    read_only = "/proc/nothing/o"
    for arguments in (APPLY, ("compute", *PAIR)):
        done = run(*arguments, "--out", read_only)
        assert done.status == 2
        assert "/proc" in done.stderr
        assert "Traceback" not in done.stderr


def test_a_full_disk(family: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run("compute", *PAIR, "--out", "stored")
    usage = shutil.disk_usage(family)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda place: usage._replace(free=1000))
    for arguments in (
        (*APPLY, "--out", "o"),
        (*APPLY, "--out", "o", "--dry-run"),
        ("compute", *PAIR, "--out", "r"),
        ("export", "--to", "residuals", "--residual", "stored", "--out", "p"),
    ):
        done = run(*arguments)
        assert done.status == 2
        assert "not enough disk space" in done.stderr
        assert "1,000 bytes" in done.stderr
        assert "--root" not in done.stderr, "there is no store to clean up"
    assert {path.name for path in family.iterdir()} == {"base", "instruct", "cpt", "stored"}


LOOKS = (
    ("geometry", *PAIR, "--base-cpt", "cpt"),
    ("card", "made"),
    ("export", "--to", "mergekit", "--target", "cpt", *PAIR),
)


@pytest.mark.parametrize("arguments", LOOKS, ids=lambda arguments: arguments[0])
def test_what_the_system_says_of_a_place_is_explained(
    family: Path, run: Run, arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(*APPLY, "--out", "made").status == 0
    before = sorted(family.rglob("*"))
    (family / "file").write_text("x")
    in_a_file = run(*arguments, "--out", "file/o")
    assert in_a_file.status == 2
    assert "file/o" in in_a_file.stderr
    assert "cannot be written" in in_a_file.stderr
    assert "place" in in_a_file.stderr.splitlines()[-1]
    (family / "file").unlink()

    def failing(code: int) -> Callable[..., None]:
        def write(*_: object, **__: object) -> None:
            raise OSError(code, os.strerror(code))

        return write

    for code, said in (
        (errno.ENOSPC, "DiskSpaceError: not enough disk space at o"),
        (errno.EROFS, "ArtifactError: o cannot be written: Read-only file system"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", failing(code))
            done = run(*arguments, "--out", "o")
        assert done.status == 2
        assert said in done.stderr
        assert "then run it again" in done.stderr
        assert "Traceback" not in done.stderr
        (family / "o").rmdir() if (family / "o").is_dir() else None
    assert sorted(family.rglob("*")) == before


def test_geometry_looks_at_its_place_before_the_work(
    family: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr("cpt_residual.api.geometry", measured)
    monkeypatch.setattr(os, "access", lambda *_: False)
    done = run(*LOOKS[0], "--out", "g")
    assert done.status == 2
    assert f"g/geometry.json cannot be written: {family} is read-only" in done.stderr


def test_a_file_that_nobody_expects_to_fail(
    family: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO), "base/model.safetensors")

    monkeypatch.setattr(os, "preadv", broken)
    done = run("compute", *PAIR, "--out", "r")
    assert done.status == 2
    assert done.stderr.splitlines()[-2:] == [
        "ArtifactError: base/model.safetensors: Input/output error",
        "No output was made. See to the file and its disk, then run it again.",
    ]
    assert not (family / "r").exists()


def test_a_target_that_is_instruct(family: Path, run: Run) -> None:
    for extra in ((), ("--dry-run",)):
        done = run("apply", "--target", "instruct", *PAIR, "--no-verify", "--out", "o", *extra)
        assert done.status == 2
        assert "The target is the instruct model itself" in done.stderr
        assert not (family / "o").exists()

"""A directory is refused, with every problem listed, unless all of its weights can be trusted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cpt_residual.errors import ArtifactError, CompatibilityError
from cpt_residual.weights.io.checkpoint import INDEX_FILE, SINGLE_FILE, is_adapter, open_checkpoint
from cpt_residual.weights.io.shard_header import read_shard
from cpt_residual.weights.tokens.compatibility import require_match, side_of
from support.pico_family import Tensors, fake_model, opened, raw_shard, write_weights

HEADER = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


def edit_index(folder: Path, name: str, shard: str | None) -> None:
    index = json.loads((folder / INDEX_FILE).read_text())
    if shard is None:
        del index["weight_map"][name]
    else:
        index["weight_map"][name] = shard
    (folder / INDEX_FILE).write_text(json.dumps(index))


def test_headers_tell_everything(tmp_path: Path, tensors: Tensors) -> None:
    checkpoint = opened(fake_model(tmp_path / "m", tensors, num_shards=2))
    assert {name: entry.shape for name, entry in checkpoint.tensors.items()} == {
        name: tuple(value.shape) for name, value in tensors.items()
    }
    assert checkpoint.num_parameters == sum(value.numel() for value in tensors.values())
    assert checkpoint.num_bytes == sum(
        f.stat().st_size for f in (tmp_path / "m").glob("*.safetensors")
    )
    assert [shard.name for shard in checkpoint.shards] == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]
    assert checkpoint.index == (tmp_path / "m" / INDEX_FILE).read_bytes()


@pytest.mark.parametrize(
    ("left_over", "num_parameters"),
    [("model.layers.0.self_attn.rotary_emb.inv_freq", 32), ("model.new.weight", 36)],
)
def test_a_plan_counts_parameters_without_torch(
    tmp_path: Path, left_over: str, num_parameters: int
) -> None:
    tensors = {"model.embed_tokens.weight": torch.ones(8, 4), left_over: torch.ones(4)}
    fake_model(tmp_path / "m", tensors)
    code = (
        "import sys; from pathlib import Path; "
        "from cpt_residual.weights.io.checkpoint import open_checkpoint; "
        "print(open_checkpoint(Path(sys.argv[1]), role='m').num_parameters_stored); "
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "m")]
    done = subprocess.run(command, check=True, env=_env(), capture_output=True, text=True)
    assert int(done.stdout) == num_parameters


def _env() -> dict[str, str]:
    source = str(Path(sys.modules["cpt_residual"].__path__[0]).parent)
    return {**os.environ, "PYTHONPATH": source}


@pytest.mark.parametrize(
    ("tied", "num_unique"), [(True, 4), (False, 5), (None, 5)], ids=["tied", "untied", "unsaid"]
)
def test_tied_tensors_count_once(
    tmp_path: Path, tensors: Tensors, tied: bool | None, num_unique: int
) -> None:
    config = {"tie_word_embeddings": tied}
    checkpoint = opened(fake_model(tmp_path / "m", tensors, config=config))
    assert len(checkpoint.unique_tensors) == num_unique
    assert len(checkpoint.tensors) == 5


def test_a_tied_model_may_store_only_the_embedding(tmp_path: Path, tensors: Tensors) -> None:
    del tensors["lm_head.weight"]
    config = {"tie_word_embeddings": True}
    assert opened(fake_model(tmp_path / "m", tensors, config=config)).aliases == {}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"{", "the safetensors header is broken"),
        (b"[]", "the top level is not an object"),
        (b'{"a": 1, "a": 2}', "repeated keys: a"),
        ({"a": 1}, "a: the entry is not an object"),
        ({"a": {**HEADER["a"], "dtype": "I8"}}, "dtype I8 is not one of BF16, F16, F32"),
        ({"a": {**HEADER["a"], "dtype": 3}}, "dtype 3 is not one of"),
        ({"a": {**HEADER["a"], "shape": [-2]}}, "shape [-2] or data_offsets [0, 8] are not counts"),
        ({"a": {**HEADER["a"], "data_offsets": [0]}}, "are not counts"),
        ({"a": {**HEADER["a"], "shape": [3]}}, "F32 [3] takes 12 bytes, the header says 8"),
        ({"a": {**HEADER["a"], "data_offsets": [4, 12]}}, "expected 86: leaves a hole"),
        ({**HEADER, "b": HEADER["a"]}, "overlaps the tensor before it"),
    ],
)
def test_broken_headers(tmp_path: Path, header: object, message: str) -> None:
    raw_shard(tmp_path / "x.safetensors", header, b"\0" * 8)
    with pytest.raises(ArtifactError) as caught:
        read_shard(tmp_path / "x.safetensors")
    assert message.replace("expected 86: ", "") in str(caught.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"\0" * 7, "is truncated: 70 bytes"), (b"\0" * 9, "has bytes after its last tensor")],
)
def test_sizes_must_agree(tmp_path: Path, data: bytes, message: str) -> None:
    raw_shard(tmp_path / "x.safetensors", HEADER, data)
    with pytest.raises(ArtifactError, match=r"x\.safetensors") as caught:
        read_shard(tmp_path / "x.safetensors")
    assert message.split(":", maxsplit=1)[0] in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"1234567", b"\xff" * 20])
def test_not_a_safetensors_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(ArtifactError, match="not a safetensors file, or cut inside its header"):
        read_shard(tmp_path / "x.safetensors")


def test_all_problems_of_a_directory_at_once(tmp_path: Path, tensors: Tensors) -> None:
    third = "model.norm.weight"
    folder = fake_model(tmp_path / "m", {**tensors, third: torch.ones(4)}, num_shards=3)
    (folder / "model-00001-of-00003.safetensors").unlink()
    cut = folder / "model-00002-of-00003.safetensors"
    cut.write_bytes(cut.read_bytes()[:-1])
    edit_index(folder, third, None)
    with pytest.raises(ArtifactError) as caught:
        opened(folder)
    text = str(caught.value)
    assert "model-00001-of-00003.safetensors: the file is missing" in text
    assert "model-00002-of-00003.safetensors is truncated" in text
    assert f"{third}: in model-00003-of-00003.safetensors but not in the index" in text


def test_index_and_shards_must_agree(tmp_path: Path, tensors: Tensors) -> None:
    folder = fake_model(tmp_path / "m", tensors, num_shards=2)
    first, second = (f"model-0000{n}-of-00002.safetensors" for n in (1, 2))
    edit_index(folder, "lm_head.weight", second)
    edit_index(folder, "absent.weight", first)
    with pytest.raises(ArtifactError) as caught:
        opened(folder)
    assert f"lm_head.weight: the index says {second}, it is in {first}" in caught.value.problems
    assert f"absent.weight: the index says {first}, which does not hold it" in caught.value.problems


def test_a_tensor_in_two_shards(tmp_path: Path, tensors: Tensors) -> None:
    folder = fake_model(tmp_path / "m", tensors, num_shards=2)
    first, second = (folder / f"model-0000{n}-of-00002.safetensors" for n in (1, 2))
    second.write_bytes(first.read_bytes())
    with pytest.raises(ArtifactError, match=f"lm_head.weight: stored in {first.name} and in"):
        opened(folder)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["../evil.safetensors", "/etc/passwd", "", "..", "a\\b"], "points outside the directory"),
        (["a\0b", "x" * 300, "é" * 200], "names what cannot be a file"),
    ],
)
def test_index_entries_that_cannot_be_followed(
    tmp_path: Path, tensors: Tensors, names: list[str], message: str
) -> None:
    folder = fake_model(tmp_path / "m", tensors, num_shards=2)
    write_weights(tmp_path, tensors)
    (tmp_path / SINGLE_FILE).rename(tmp_path / "evil.safetensors")
    for name in names:
        edit_index(folder, "lm_head.weight", name)
        with pytest.raises(ArtifactError, match=f"the index {message}"):
            open_checkpoint(folder, role="m", links_allowed=True)


def test_links_are_followed_only_where_allowed(tmp_path: Path, tensors: Tensors) -> None:
    folder = fake_model(tmp_path / "m", tensors)
    (folder / SINGLE_FILE).rename(tmp_path / "blob")
    (folder / SINGLE_FILE).symlink_to(tmp_path / "blob")
    with pytest.raises(ArtifactError, match="a link that leaves the directory"):
        opened(folder)
    assert open_checkpoint(folder, role="m", links_allowed=True).num_parameters == 108
    (folder / SINGLE_FILE).unlink()
    (tmp_path / "blob").rename(folder / "inside")
    (folder / SINGLE_FILE).symlink_to("inside")
    assert opened(folder).num_parameters == 108
    (folder / "inside").unlink()
    with pytest.raises(ArtifactError, match="the file is missing"):
        opened(folder)


def test_what_is_not_a_model_directory(tmp_path: Path, tensors: Tensors) -> None:
    with pytest.raises(ArtifactError, match="is not a directory"):
        opened(tmp_path / "absent")
    folder = fake_model(tmp_path / "m", tensors)
    (folder / INDEX_FILE).write_text("{}")
    with pytest.raises(ArtifactError, match="holds both"):
        opened(folder)
    (folder / SINGLE_FILE).rename(folder / "other.safetensors")
    with pytest.raises(ArtifactError, match="has no weight_map"):
        opened(folder)
    (folder / INDEX_FILE).unlink()
    with pytest.raises(
        ArtifactError, match=r"neither model.safetensors nor[^\0]*other.safetensors"
    ):
        opened(folder)
    (folder / "other.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(CompatibilityError, match=r"pickle weights only\n  pytorch_model.bin"):
        opened(folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(ArtifactError, match="holds no weights"):
        opened(folder)
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(CompatibilityError, match="is a LoRA adapter, not a model"):
        opened(folder)


@pytest.mark.parametrize("num_shards", [1, 2])
def test_a_model_with_a_left_over_adapter_config(
    tmp_path: Path, tensors: Tensors, num_shards: int
) -> None:
    folder = fake_model(tmp_path / "m", tensors, num_shards=num_shards)
    (folder / "adapter_config.json").write_text("{}")
    assert not is_adapter(folder)
    assert len(opened(folder).tensors) == len(tensors)


def test_a_model_without_tensors(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no tensors at all"):
        opened(fake_model(tmp_path / "m", {}))


def test_scalars_and_empty_tensors(tmp_path: Path) -> None:
    odd = {"a": torch.ones(()), "b": torch.ones(0, 3), "c": torch.ones(2)}
    assert opened(fake_model(tmp_path / "m", odd)).num_parameters == 3


@pytest.mark.parametrize(
    ("base", "instruct", "fits"),
    [
        ({"rope_theta": 10_000.0}, {"rope_theta": 1_000_000.0}, False),
        ({"rope_theta": 10_000.0}, {"rope_parameters": {"rope_theta": 10_000.0}}, True),
        ({"rope_theta": 10_000.0}, {"rope_parameters": {"rope_theta": 500_000.0}}, False),
        ({}, {"rope_theta": 500_000.0}, False),
        ({}, {"rope_theta": 10_000.0}, True),
        ({"rope_scaling": {"rope_theta": 500_000.0, "rope_type": "default"}}, {}, False),
        ({"rms_norm_eps": 1e-5}, {}, False),
        ({"head_dim": None}, {"head_dim": 1}, True),
        ({"num_key_value_heads": 16}, {}, False),
        ({"rms_norm_eps": 1e-5}, {"rms_norm_eps": 1e-6}, False),
        ({"rope_scaling": None}, {"rope_scaling": {"factor": 8.0}}, True),
    ],
)
def test_models_that_compute_differently_do_not_fit(
    tmp_path: Path,
    tensors: Tensors,
    base: dict[str, object],
    instruct: dict[str, object],
    fits: bool,
) -> None:
    """Equal names and shapes are not enough: other rotary frequencies are another model."""
    one = fake_model(tmp_path / "base", tensors, config=base)
    other = fake_model(tmp_path / "instruct", tensors, config=instruct)
    sides = [side_of(open_checkpoint(folder, role=folder.name)) for folder in (one, other)]
    if fits:
        require_match(*sides)
    else:
        with pytest.raises(CompatibilityError, match=r"config\.json (rope|rms|num)"):
            require_match(*sides)

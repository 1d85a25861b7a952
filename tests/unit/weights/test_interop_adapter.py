"""LoRA adapters as CPT targets."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cpt_residual.errors import ArtifactError, CompatibilityError
from cpt_residual.weights.interop.adapter import merge_adapter, require_plain_lora
from cpt_residual.weights.io.checkpoint import is_adapter
from support.interop_models import (
    DOWN,
    EMBEDDING,
    HEAD,
    NORM,
    QUERY,
    ROWS,
    SHAPES,
    model,
    tensors_of,
    values,
)
from support.pico_family import Tensors, opened, read_all, same_bits, tokenizer_folder

PREFIX = "base_model.model."
CONFIG: dict[str, object] = {
    "peft_type": "LORA",
    "r": 2,
    "lora_alpha": 8,
    "bias": "none",
    "use_dora": False,
    "qalora_group_size": 16,
    "base_model_name_or_path": "somewhere/else",
}


def factors(name: str, *, rank: int = 2, seed: int = 9) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    rows, columns = SHAPES[name]
    module = PREFIX + name.removesuffix(".weight")
    return {
        f"{module}.lora_A.weight": torch.randn(rank, columns, generator=generator),
        f"{module}.lora_B.weight": torch.randn(rows, rank, generator=generator),
    }


def adapter(folder: Path, tensors: Tensors, **config: object) -> Path:
    folder.mkdir(parents=True)
    modules = {name.partition(".lora_")[0] for name in tensors if ".lora_" in name}
    targets = sorted(name.removeprefix(PREFIX) for name in modules)
    fields = {**CONFIG, "target_modules": targets, **config}
    (folder / "adapter_config.json").write_text(json.dumps(fields))
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


def exact_delta(tensors: Tensors, name: str, scale: float) -> np.ndarray:
    module = PREFIX + name.removesuffix(".weight")
    left, right = (tensors[f"{module}.lora_{half}.weight"] for half in ("B", "A"))
    return scale * (left.double() @ right.double()).numpy()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_adapter_is_merged_exactly(tmp_path: Path, dtype: torch.dtype) -> None:
    start = values(0, dtype)
    base = opened(model(tmp_path / "base", start, num_shards=3), "base")
    tensors = {**factors(QUERY), **factors(DOWN, rank=3)}
    folder = adapter(
        tmp_path / "adapter",
        tensors,
        rank_pattern={r"layers\.0\.mlp\.down_proj": 3},
        alpha_pattern={"down_proj": 5},
    )
    assert is_adapter(folder)
    assert not is_adapter(base.path)
    assert merge_adapter(folder, base, tmp_path / "out") == tmp_path / "out"
    merged = read_all(tmp_path / "out")
    scales = {QUERY: 8 / 2, DOWN: 5 / 3}
    for name, value in start.items():
        if name in scales:
            exact = value.double() + torch.from_numpy(exact_delta(tensors, name, scales[name]))
            assert same_bits(merged[name], exact.to(dtype)), name
        else:
            assert same_bits(merged[name], value), name
    index = "model.safetensors.index.json"
    assert (tmp_path / "out" / index).read_bytes() == (base.path / index).read_bytes()
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    opened(tmp_path / "out")


def test_elements_that_do_not_move_keep_their_bits(tmp_path: Path) -> None:
    start = values(0)
    start[QUERY][0] = -0.0
    tensors = factors(QUERY)
    tensors[PREFIX + "model.layers.0.self_attn.q_proj.lora_B.weight"].zero_()
    base = opened(model(tmp_path / "base", start), "base")
    merge_adapter(adapter(tmp_path / "adapter", tensors), base, tmp_path / "out")
    merged = tmp_path / "out" / "model.safetensors"
    assert merged.read_bytes() == (base.path / "model.safetensors").read_bytes()


def test_whole_tensors_and_embedding_factors(tmp_path: Path) -> None:
    start, new = values(0), values(3, torch.float32)
    module = PREFIX + "model.embed_tokens"
    generator = torch.Generator().manual_seed(1)
    tensors = {
        f"{module}.lora_embedding_A": torch.randn(2, ROWS, generator=generator),
        f"{module}.lora_embedding_B": torch.randn(8, 2, generator=generator),
        f"{module}.base_layer.weight": new[EMBEDDING],
        PREFIX + NORM: new[NORM],
        PREFIX + HEAD: new[HEAD],
    }
    folder = adapter(
        tmp_path / "adapter",
        tensors,
        target_modules=r".*embed_tokens",
        modules_to_save=["model.norm", "lm_head"],
    )
    base = opened(model(tmp_path / "base", start, num_shards=2), "base")
    merge_adapter(folder, base, tmp_path / "out")
    merged = read_all(tmp_path / "out")
    product = tensors[f"{module}.lora_embedding_A"].double().T @ (
        tensors[f"{module}.lora_embedding_B"].double().T
    )
    exact = new[EMBEDDING].double() + 4.0 * product
    assert same_bits(merged[EMBEDDING], exact.to(torch.bfloat16))
    assert same_bits(merged[HEAD], new[HEAD].to(torch.bfloat16))
    assert same_bits(merged[NORM], new[NORM].to(torch.bfloat16))
    assert same_bits(merged[QUERY], start[QUERY])


@pytest.mark.parametrize("num_shards", [1, 2])
def test_added_tokens_bring_rows_and_tokenizer(tmp_path: Path, num_shards: int) -> None:
    grown = torch.randn(ROWS + 4, 8), torch.randn(ROWS + 4, 8)
    tensors = {PREFIX + EMBEDDING: grown[0], PREFIX + HEAD: grown[1], **factors(QUERY)}
    folder = adapter(tmp_path / "adapter", tensors)
    for file in tokenizer_folder().iterdir():
        shutil.copy(file, folder / file.name)
    (folder / "chat_template.jinja").write_text("the adapter's")
    base = opened(model(tmp_path / "base", values(0), num_shards=num_shards), "base")
    merge_adapter(folder, base, tmp_path / "out")
    merged = opened(tmp_path / "out")
    assert merged.tensors[EMBEDDING].shape == merged.tensors[HEAD].shape == (ROWS + 4, 8)
    assert same_bits(read_all(tmp_path / "out")[HEAD], grown[1].to(torch.bfloat16))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == ROWS + 4
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "the adapter's"
    if num_shards > 1:
        assert merged.index is not None
        total = json.loads(merged.index)["metadata"]["total_size"]
        assert total == sum(entry.num_bytes for entry in merged.tensors.values())


def test_a_tied_base_takes_both_or_neither(tmp_path: Path) -> None:
    base = opened(model(tmp_path / "base", tensors_of(tied=True, seed=0), tied=True), "base")
    new = torch.randn(ROWS, 8)
    lora = factors(QUERY)
    both = {PREFIX + EMBEDDING: new, PREFIX + HEAD: new.clone(), **lora}
    merge_adapter(adapter(tmp_path / "both", both), base, tmp_path / "out")
    merged = read_all(tmp_path / "out")
    assert same_bits(merged[EMBEDDING], new.to(torch.bfloat16))
    assert HEAD not in merged

    made = adapter(tmp_path / "tying", both, ensure_weight_tying=True)  # peft's advice for these
    shutil.copy(base.path / "config.json", made)  # trainers leave it there
    assert is_adapter(made)
    merge_adapter(made, base, tmp_path / "tied")
    assert same_bits(read_all(tmp_path / "tied")[EMBEDDING], merged[EMBEDDING])
    shutil.copy(base.path / "model.safetensors", made)
    assert not is_adapter(made)
    with pytest.raises(CompatibilityError, match="of a model and those of an adapter") as two:
        opened(made)
    assert two.value.problems == ("adapter_model.safetensors",)
    (made / "adapter_model.safetensors").unlink()
    assert opened(made).tensors.keys() == base.tensors.keys(), "its config alone decides nothing"

    one = adapter(tmp_path / "one", {PREFIX + EMBEDDING: new, **lora})
    merge_adapter(one, base, tmp_path / "from one")
    assert same_bits(read_all(tmp_path / "from one")[EMBEDDING], merged[EMBEDDING])
    apart = adapter(tmp_path / "apart", {**both, PREFIX + HEAD: new + 1.0})
    with pytest.raises(CompatibilityError, match="stored with other values"):
        merge_adapter(apart, base, tmp_path / "no")
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "IA3"}, "PEFT type IA3"),
        ({"use_dora": True}, "use_dora: True"),
        ({"bias": "all"}, "bias: all"),
        ({"lora_bias": True}, "lora_bias: True"),
        ({"init_lora_weights": "pissa_niter_4"}, "it has changed the base's weights"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"an_option_of_tomorrow": 0.5}, "an_option_of_tomorrow: 0.5"),
        ({"r": 0}, "r: Input should be greater than 0"),
        ({"r": "many"}, "r: Input should be a valid integer"),
        ({"target_modules": "("}, "unterminated subpattern"),
        ({"r": 3}, r"size mismatch for .*q_proj.lora_A"),
        ({"target_modules": ["k_proj"]}, r"q_proj.lora_A.weight: the base has no place for it"),
        (
            {"target_modules": ["q_proj", "down_proj"]},
            r"down_proj: .* not store all of its tensors",
        ),
        ({"modules_to_save": ["norm"]}, r"norm\.weight"),
    ],
)
def test_an_adapter_that_is_more_than_plain_lora_is_refused(
    tmp_path: Path, config: dict[str, object], message: str
) -> None:
    base = opened(model(tmp_path / "base", values(0)), "base")
    folder = adapter(tmp_path / "adapter", factors(QUERY), **config)
    with pytest.raises((CompatibilityError, ArtifactError), match=message):
        merge_adapter(folder, base, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_tensors_without_a_place_are_all_named(tmp_path: Path) -> None:
    base = opened(model(tmp_path / "base", values(0)), "base")
    module = PREFIX + "model.layers.0.self_attn.q_proj"
    tensors = {
        f"{module}.lora_A.weight": torch.ones(2, 8),
        f"{module}.lora_magnitude_vector": torch.ones(8),
        PREFIX + NORM: torch.ones(8),
        "model.layers.0.mlp.down_proj.lora_A.weight": torch.ones(2, 12),
        **{
            name.replace("down_proj", "gone.down_proj"): value
            for name, value in factors(DOWN).items()
        },
    }
    folder = adapter(tmp_path / "adapter", tensors, target_modules=["q_proj"])
    with pytest.raises(CompatibilityError) as caught:
        merge_adapter(folder, base, tmp_path / "out")
    text = str(caught.value)
    for line in (
        "q_proj: the adapter does not store all of its tensors",
        "q_proj.lora_magnitude_vector",
        "model.norm.weight: stored whole, but modules_to_save does not name it",
        "down_proj.lora_A.weight: the base has no place for it",
        "gone.down_proj.lora_B.weight: the base has no place for it",
    ):
        assert line in text


def test_shapes_that_do_not_fit_and_values_that_are_no_numbers(tmp_path: Path) -> None:
    base = opened(model(tmp_path / "base", values(0)), "base")
    module = PREFIX + "model.layers.0.mlp.down_proj"
    wrong = {
        f"{module}.lora_A.weight": torch.ones(2, 8),
        f"{module}.lora_B.weight": torch.ones(12, 2),
    }
    with pytest.raises(CompatibilityError, match=r"size mismatch for .*down_proj\.lora_A"):
        merge_adapter(adapter(tmp_path / "wrong", wrong), base, tmp_path / "out")
    grown = {PREFIX + EMBEDDING: torch.ones(ROWS + 1, 8), **factors(QUERY)}
    with pytest.raises(CompatibilityError, match=rf"rows differ: .*{ROWS}.*{ROWS + 1}"):
        merge_adapter(adapter(tmp_path / "grown", grown), base, tmp_path / "out")
    broken = factors(QUERY)
    broken[PREFIX + "model.layers.0.self_attn.q_proj.lora_A.weight"][0, 0] = math.inf
    with pytest.raises(CompatibilityError, match=r"q_proj\.weight: NaN or Inf"):
        merge_adapter(adapter(tmp_path / "broken", broken), base, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_pickle_and_a_tokenizer_with_more_tokens_are_refused(tmp_path: Path) -> None:
    base = opened(model(tmp_path / "base", values(0)), "base")
    folder = adapter(tmp_path / "adapter", factors(QUERY))
    for file in tokenizer_folder().iterdir():
        shutil.copy(file, folder / file.name)
    small = {
        name: value[:20] if value.shape[0] == ROWS else value for name, value in values(0).items()
    }
    few = opened(model(tmp_path / "few", small), "base")
    with pytest.raises(CompatibilityError, match="the merged model fewer rows"):
        merge_adapter(folder, few, tmp_path / "out")
    weights = folder / "adapter_model.safetensors"
    weights.rename(folder / "adapter_model.bin")
    with pytest.raises(CompatibilityError, match="pickle"):
        merge_adapter(folder, base, tmp_path / "out")


def test_a_class_that_is_not_known_takes_no_adapter(tmp_path: Path) -> None:
    """peft needs the class."""
    base = opened(model(tmp_path / "base", values(0), model_type="of_the_future"), "base")
    with pytest.raises(CompatibilityError, match="of_the_future"):
        merge_adapter(adapter(tmp_path / "made", factors(QUERY)), base, tmp_path / "out")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("r", "8"),
        ("lora_alpha", None),
        ("rank_pattern", {"q_proj": "two"}),
        ("alpha_pattern", [1]),
        ("target_modules", "(q_proj"),
        ("exclude_modules", 3),
    ],
)
def test_a_setting_of_another_type_is_named(tmp_path: Path, key: str, value: object) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({**CONFIG, key: value}))
    with pytest.raises(ArtifactError, match=r"adapter_config\.json is damaged") as found:
        require_plain_lora(tmp_path)
    assert key in str(found.value)

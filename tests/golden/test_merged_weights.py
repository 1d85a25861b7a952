"""The bits of merged weights and stored residuals: a refactoring must not move one.

Models are made from seeded numpy, so hashes depend on neither torch nor a download. A deliberate
change: `UPDATE_GOLDEN=1 python -m pytest tests/golden/test_merged_weights.py`, and say in the
changelog under Numerics what differs.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from cpt_residual import api
from cpt_residual.config.merging import MergeRecipe, Storage
from cpt_residual.modeling.chat import TINY_CHAT_TEMPLATE
from support import tiny_tokenizer

GOLDEN = Path(__file__).parent / "weights" / "merged.json"
SHAPES = {
    "model.embed_tokens.weight": (280, 16),
    "model.layers.0.input_layernorm.weight": (16,),
    "model.layers.0.self_attn.q_proj.weight": (16, 16),
    "model.layers.0.mlp.up_proj.weight": (24, 16),
    "model.layers.1.mlp.down_proj.weight": (8200, 32),  # more than one block
    "model.norm.weight": (16,),
    "lm_head.weight": (280, 16),
}
VOCABULARY = ("model.embed_tokens.weight", "lm_head.weight")
NUMPY = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(np.uint16)}
FAMILIES = {
    "untied_bf16": ("BF16", False, 3),
    "tied_fp32": ("F32", True, 1),
    "tied_fp16": ("F16", True, 2),
}
RECIPES: dict[str, dict[str, object]] = {
    "add": {},
    "ties": {"method": {"kind": "ties", "density": 0.3}},
    "dare": {"method": {"kind": "dare", "drop_rate": 0.6, "seed": 5}},
    "low_rank_by_rank": {"method": {"kind": "low_rank", "rank": 3}},
    "low_rank_by_variance": {"method": {"kind": "low_rank", "explained_variance": 0.7}},
    "cpt_strength": {"cpt_strength": 0.5},
    "scales": {"scales": {"attention": 0.5, "layers.1": 2.0, "*norm.weight": 0.0}},
    "no_embedding_rows": {"embedding_rows": "none"},
    "special_token_rows": {"embedding_rows": "special_tokens"},
    "auto_alpha": {"auto_alpha": "projection"},
    "ties_and_strength": {
        "method": {"kind": "ties"},
        "cpt_strength": 0.75,
        "scales": {"mlp": 0.5},
        "embedding_rows": "special_tokens",
    },
    "dare_and_projection": {
        "method": {"kind": "dare", "seed": 1},
        "cpt_strength": 1.5,
        "auto_alpha": "projection",
    },
    "low_rank_and_strength": {"method": {"kind": "low_rank", "rank": 2}, "cpt_strength": 0.25},
}
STORAGES: dict[str, dict[str, object]] = {
    "fp32": {"dtype": "fp32"},
    "bf16": {"dtype": "bf16"},
    "factors": {"dtype": "fp32", "low_rank": {"rank": 3}},
}


def raw(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]], dtype: str) -> bytes:
    """Elements of `dtype`, cut from fp32 for bf16."""
    if dtype != "BF16":
        return values.astype(NUMPY[dtype]).tobytes()
    return (values.astype(np.float32).view(np.uint32) >> np.uint32(16)).astype(np.uint16).tobytes()


def write_shard(path: Path, tensors: dict[str, tuple[str, tuple[int, ...], bytes]]) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (dtype, shape, data) in tensors.items():
        place = [offset, offset + len(data)]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": place}
        offset += len(data)
    text = json.dumps(header).encode()
    data = b"".join(each[2] for each in tensors.values())
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def write_model(
    folder: Path, *, scale: float, seed: int, family: str, tokens: Sequence[str] = ()
) -> None:
    """The base's weights, moved by `scale`, with rows for further tokens."""
    dtype, tied, num_shards = FAMILIES[family]
    tokenizer = tiny_tokenizer.train()
    tokenizer.add_special_tokens({"extra_special_tokens": list(tokens)})
    tokenizer.chat_template = TINY_CHAT_TEMPLATE
    tiny_tokenizer.save(tokenizer, folder)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "tie_word_embeddings": tied,
        "eos_token_id": 1,
    }
    (folder / "config.json").write_text(json.dumps(config))
    start, moved = np.random.default_rng(0), np.random.default_rng(seed)
    tensors: dict[str, tuple[str, tuple[int, ...], bytes]] = {}
    for name, shape in SHAPES.items():
        values = 0.05 * start.standard_normal(shape)
        values += scale * moved.standard_normal(shape) * (moved.random(shape) < 0.8)
        if tokens and name in VOCABULARY:
            values = np.concatenate([values, 0.1 * moved.standard_normal((len(tokens), 16))])
        if not (tied and name == "lm_head.weight"):
            tensors[name] = (dtype, values.shape, raw(values, dtype))
    if num_shards == 1:
        write_shard(folder / "model.safetensors", tensors)
        return
    weight_map: dict[str, str] = {}
    for number in range(num_shards):
        shard = f"model-{number + 1:05d}-of-{num_shards:05d}.safetensors"
        part = {name: tensors[name] for name in list(tensors)[number::num_shards]}
        write_shard(folder / shard, part)
        weight_map |= dict.fromkeys(part, shard)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def write_family(root: Path, family: str, *, grown: bool = False) -> api.Pair:
    """base, instruct and cpt, each grown by other tokens where asked for."""
    write_model(root / "base", scale=0.0, seed=1, family=family)
    for name, seed, tokens in (("instruct", 2, ("<a>", "<b>", "<c>")), ("cpt", 3, ("<c>", "<d>"))):
        write_model(
            root / name, scale=0.004, seed=seed, family=family, tokens=tokens if grown else ()
        )
    return api.Pair(root / "base", root / "instruct")


def digest(folder: Path) -> str:
    total = hashlib.sha256()
    for path in sorted(folder.glob("**/*.safetensors*")):
        total.update(f"{path.relative_to(folder)}\n".encode() + path.read_bytes())
    return total.hexdigest()[:24]


def require_golden(name: str, found: dict[str, str]) -> None:
    golden: dict[str, dict[str, str]] = json.loads(GOLDEN.read_text())
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(json.dumps({**golden, name: found}, indent=1, sort_keys=True) + "\n")
        return
    assert found == golden[name], "see the head of this file"


@pytest.fixture
def merged(tmp_path: Path) -> Callable[..., str]:
    """The hash of one merge."""

    def merge(source: Path | api.Pair, recipe: dict[str, object], *alphas: float) -> str:
        out, needs_base = tmp_path / "out", "vocab_policy" not in recipe
        base = tmp_path / "base" if needs_base else None
        api.apply(
            tmp_path / "cpt",
            source,
            out,
            alphas=alphas or (0.8,),
            recipe=MergeRecipe.model_validate(recipe),
            options=api.ApplyOptions(target_base=base, verify=False),
        )
        found = digest(out)
        shutil.rmtree(out)
        return found

    return merge


@pytest.mark.parametrize("family", FAMILIES)
def test_every_recipe(family: str, tmp_path: Path, merged: Callable[..., str]) -> None:
    pair = write_family(tmp_path, family)
    found = {name: merged(pair, recipe) for name, recipe in RECIPES.items()}
    found["add_several_alphas"] = merged(pair, {}, 0.0, -0.5, 1.0, 1.25, 2.0)
    found["ties_several_alphas"] = merged(pair, RECIPES["ties"], 0.5, 1.0)
    require_golden(family, found)


@pytest.mark.parametrize("storage", STORAGES)
def test_every_storage(storage: str, tmp_path: Path, merged: Callable[..., str]) -> None:
    pair, residual = write_family(tmp_path, "untied_bf16"), tmp_path / "residual"
    how = Storage.model_validate(STORAGES[storage])
    api.compute(pair.base, pair.instruct, residual, storage=how)
    found = {name: merged(residual, RECIPES[name]) for name in ("add", "ties", "dare")}
    require_golden(f"stored_{storage}", {**found, "residual": digest(residual)})


@pytest.mark.parametrize("rows", ["instruct_row", "base_mean"])
def test_tokens_of_their_own(rows: str, tmp_path: Path, merged: Callable[..., str]) -> None:
    pair, residual = write_family(tmp_path, "untied_bf16", grown=True), tmp_path / "residual"
    api.compute(pair.base, pair.instruct, residual, vocab_policy="common_tokens")
    recipe: dict[str, object] = {
        "vocab_policy": "common_tokens",
        "new_token_rows": rows,
        "scales": {"mlp": 0.5},
    }
    special = {**recipe, "embedding_rows": "special_tokens"}
    found = {"pair": merged(pair, recipe), "special": merged(pair, special)}
    found |= {"stored": merged(residual, recipe), "residual": digest(residual)}
    require_golden(f"common_tokens_{rows}", found)

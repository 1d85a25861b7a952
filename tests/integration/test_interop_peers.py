"""What this package writes, used by the packages it is written for, and the reverse.

peft is here with lm-eval. `residuals` and `mergekit` are looked for in virtual environments of
their own below the folder that CPT_RESIDUAL_PEERS names (`residuals/` and `mergekit/`, as
benchmarks/weights.py --make-peers makes them).
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cpt_residual.config.merging import MergeRecipe
from cpt_residual.methods.dare import Dare
from cpt_residual.methods.ties import Ties
from cpt_residual.weights.interop.adapter import merge_adapter
from cpt_residual.weights.interop.mergekit_yaml import mergekit_yaml
from cpt_residual.weights.interop.residuals_folder import (
    folder_delta,
    read_residuals_folder,
    write_residuals_folder,
)
from cpt_residual.weights.maths.arithmetic import max_ulps
from cpt_residual.weights.merge.merge import Output, merge
from cpt_residual.weights.residual.compute import compute
from cpt_residual.weights.residual.residual_format import open_residual
from cpt_residual.weights.residual.source import PairDelta, StoredDelta
from support.pico_family import Tensors, opened, read_all, real_family, same_bits
from support.raw import raw_of

PEERS = "CPT_RESIDUAL_PEERS"
QUIET = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")  # peft's
RESIDUALS_SCRIPT = """
import sys
from residuals import Residuals
base, instruct, ours, out = sys.argv[1:]
Residuals.from_models(base_model=base, instruct_model=instruct).save_pretrained(out + "/theirs")
Residuals.from_pretrained(ours).apply(base_model=base, out_dir=out + "/applied")
"""


def program(peer: str, name: str) -> str:
    """A program of a peer's environment; skips the test where there is none."""
    folder = os.environ.get(PEERS)
    if not folder:
        pytest.skip(f"{PEERS} names no folder with the virtual environments of the peers")
    path = Path(folder).absolute() / peer / "bin" / name
    if not path.is_file():
        pytest.skip(f"{peer} is not installed: no {path}")
    return str(path)


def run(*command: str | Path) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [str(part) for part in command],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]


# --- residuals ------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize("tied", [False, True])
def test_residuals_uses_ours_and_we_use_theirs(tmp_path: Path, tied: bool) -> None:
    python = program("residuals", "python")
    family = real_family(tmp_path, model_type="llama", tied=tied, dtype=torch.bfloat16)
    base, instruct = (opened(family[name], name) for name in ("base", "instruct"))
    manifest = compute(base, instruct, tmp_path / "residual")
    assert manifest.num_rounded == 0
    residual = open_residual(tmp_path / "residual")
    write_residuals_folder(residual, tmp_path / "ours")
    run(python, "-c", RESIDUALS_SCRIPT, base.path, instruct.path, tmp_path / "ours", tmp_path)

    # what they write is what we write, element by element
    ours, theirs = (read_residuals_folder(tmp_path / name) for name in ("ours", "theirs"))
    hashes = ("param_count", "parameter_names_hash", "shapes_hash", "dtype")
    assert all(getattr(ours.config, key) == getattr(theirs.config, key) for key in hashes)
    left, right = (load_file(tmp_path / name / "model.safetensors") for name in ("ours", "theirs"))
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert theirs.config.base_model_name == str(base.path)

    # base + ours, applied by them in float32, is instruct
    applied = read_all(tmp_path / "applied")
    for name, value in read_all(instruct.path).items():
        if name in applied:
            assert torch.equal(applied[name], value.float()), name
    assert len(applied) >= len(left) - tied

    # theirs, merged by us, has the bytes of our own residual
    target = opened(family["base_cpt"])
    merge(target, folder_delta(theirs, target), [Output(1.0, tmp_path / "from_theirs")])
    merge(target, StoredDelta(residual), [Output(1.0, tmp_path / "from_ours")])
    for shard in target.shards:
        found, expected = (
            (tmp_path / name / shard.name).read_bytes() for name in ("from_theirs", "from_ours")
        )
        assert found == expected


# --- mergekit -------------------------------------------------------------------------------------
def merged_by_both(
    root: Path, recipe: MergeRecipe, alpha: float, *, dtype: torch.dtype, arithmetic: str
) -> tuple[Tensors, Tensors, Tensors]:
    """One recipe on a family of `dtype`: (mergekit's, ours, target's)."""
    mergekit = program("mergekit", "mergekit-yaml")
    family = real_family(root, model_type="llama", tied=False, dtype=dtype)
    base, instruct, target = (opened(family[n], n) for n in ("base", "instruct", "base_cpt"))
    text = mergekit_yaml(
        base=base,
        instruct=instruct,
        target=target,
        alpha=alpha,
        recipe=recipe,
        dtype="bfloat16" if arithmetic == "bfloat16" else "float32",
    )
    (root / "merge.yml").write_text(text)
    run(mergekit, root / "merge.yml", root / "theirs", "--quiet", "--lazy-unpickle")
    merge(
        target, PairDelta(base, instruct), [Output(alpha, root / "ours")], recipe=recipe, base=base
    )
    return read_all(root / "theirs"), read_all(root / "ours"), read_all(target.path)


def differences(found: Tensors, expected: Tensors) -> tuple[float, int]:
    """The share of elements that differ, and the largest difference in ulps."""
    assert found.keys() == expected.keys()
    assert all(found[name].dtype == expected[name].dtype for name in found)
    assert all(found[name].shape == expected[name].shape for name in found)
    num_differing = sum(int((found[n] != expected[n]).sum()) for n in found)
    num_all = sum(value.numel() for value in found.values())
    return num_differing / num_all, max(
        max_ulps(raw_of(found[n]), raw_of(expected[n])) for n in found
    )


def largest_error(found: Tensors, expected: Tensors) -> float:
    """max |found - expected| over the largest magnitude of its tensor."""
    return max(
        float((found[n].double() - expected[n].double()).abs().max())
        / float(expected[n].double().abs().max())
        for n in found
    )


SCALED = MergeRecipe(cpt_strength=0.9, scales={"mlp": 0.5, "norm": 0.0}, embedding_rows="none")


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [MergeRecipe(), SCALED], ids=["plain", "scaled"])
def test_mergekit_in_float32_is_one_rounding_away(tmp_path: Path, recipe: MergeRecipe) -> None:
    """Measured: 10 % of the elements differ, by 8.5e-8 of their tensor's largest at most (more ulps
    where terms cancel)."""
    theirs, ours, _ = merged_by_both(
        tmp_path, recipe, 0.7, dtype=torch.float32, arithmetic="float32"
    )
    share, _ = differences(theirs, ours)
    assert share < 0.15
    assert largest_error(theirs, ours) < 2.0**-23
    assert "tokenizer_source" in (tmp_path / "merge.yml").read_text()
    files = [(tmp_path / name / "tokenizer.json") for name in ("theirs", "ours")]
    vocabularies = [json.loads(file.read_text())["model"]["vocab"] for file in files]
    assert vocabularies[0] == vocabularies[1]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [MergeRecipe(), SCALED], ids=["plain", "scaled"])
def test_mergekit_on_bf16_models_in_float32(tmp_path: Path, recipe: MergeRecipe) -> None:
    """Measured: 0.011 % (plain) and 0.096 % (scaled) of the elements differ, by one ulp: float32
    rounds before bf16 does."""
    theirs, ours, _ = merged_by_both(
        tmp_path, recipe, 0.7, dtype=torch.bfloat16, arithmetic="float32"
    )
    share, ulps = differences(theirs, ours)
    assert share < 0.002
    assert ulps <= 1


@pytest.mark.slow
def test_mergekit_ties_is_ours_where_the_weights_are_equal(tmp_path: Path) -> None:
    """Measured: 5.4 % of the elements differ, by 4.4e-8 of their tensor's largest at most; an
    element trimmed by one and kept by the other would differ by 1e-3 and more."""
    recipe = MergeRecipe(method=Ties(density=0.3), cpt_strength=0.7)
    theirs, ours, _ = merged_by_both(
        tmp_path, recipe, 0.7, dtype=torch.float32, arithmetic="float32"
    )
    share, _ = differences(theirs, ours)
    assert share < 0.1
    assert largest_error(theirs, ours) < 2.0**-23


@pytest.mark.slow
def test_mergekit_dare_is_of_the_same_distribution(tmp_path: Path) -> None:
    """Measured: mergekit moves 40.1 % of the elements, we 40.1 %, 40 % are expected; what moves
    moves by residual / (1 - drop_rate) in both."""
    recipe = MergeRecipe(method=Dare(drop_rate=0.6))
    theirs, ours, target = merged_by_both(
        tmp_path, recipe, 1.0, dtype=torch.float32, arithmetic="float32"
    )
    base, instruct = (read_all(tmp_path / name) for name in ("base", "instruct"))
    for found in (theirs, ours):
        moved = {name: (value - target[name]).abs() > 1e-6 for name, value in found.items()}
        num_moved = sum(int(mask.sum()) for mask in moved.values())
        share = num_moved / sum(mask.numel() for mask in moved.values())
        assert share == pytest.approx(0.4, abs=0.01)
        for name, mask in moved.items():
            full = target[name] + (instruct[name] - base[name]) / 0.4
            assert torch.allclose(found[name][mask], full[mask], atol=1e-6)


# --- peft -----------------------------------------------------------------------------------------
@QUIET
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_peft_merges_an_adapter_to_the_same_up_to_its_rounding(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    """Every kind of tensor that peft writes for LoRA. Measured: peft in float32 differs in 18.6 %
    of the elements, by 1.3e-7 of their tensor's largest at most; its float32 result for the bf16
    base, rounded to bf16, is ours in every element."""
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    family = real_family(tmp_path, model_type="llama", tied=False, dtype=dtype)

    def load() -> torch.nn.Module:
        return transformers.AutoModelForCausalLM.from_pretrained(
            family["base"], dtype=torch.float32
        )

    config = peft.LoraConfig(
        r=4,
        lora_alpha=6,
        use_rslora=True,
        target_modules=["q_proj", "down_proj", "embed_tokens"],
        modules_to_save=["lm_head", "norm"],
        rank_pattern={"layers.0.mlp.down_proj": 2},
        alpha_pattern={"q_proj": 3},
    )
    adapted = peft.get_peft_model(load(), config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(0.1 * noise)
    adapted.save_pretrained(tmp_path / "adapter")
    merge_adapter(tmp_path / "adapter", opened(family["base"], "base"), tmp_path / "ours")
    ours = read_all(tmp_path / "ours")

    reloaded = peft.PeftModel.from_pretrained(load(), tmp_path / "adapter")
    theirs = reloaded.merge_and_unload().state_dict()
    expected = {name: theirs[name].to(dtype) for name in ours}
    share, ulps = differences(ours, expected)
    start = read_all(family["base"])
    moved = {name for name in ours if not same_bits(ours[name], start[name])}
    assert {name.rsplit(".", 2)[-2] for name in moved} == {
        "q_proj",
        "down_proj",
        "embed_tokens",
        "lm_head",
        "norm",
        "input_layernorm",  # peft compares ends of names
        "post_attention_layernorm",
    }
    if dtype == torch.float32:
        assert largest_error(ours, expected) < 2.0**-22
    else:
        assert ulps <= 1
        assert share < 0.001

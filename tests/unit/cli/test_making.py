"""compute and apply: options, estimates, records, several alphas, other kinds of input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cpt_residual.modeling.chat import TINY_CHAT_TEMPLATE
from support import tiny_tokenizer
from support.cli_family import APPLY, NUM_PARAMETERS, PAIR, SHAPES, Run, tensors, weights_of
from support.pico_family import Tensors, fake_model, read_all, same_bits, write_weights


def test_compute_then_apply_equals_apply_from_the_pair(family: Path, run: Run) -> None:
    computed = run("compute", *PAIR, "--out", "r", "--json")
    assert computed.status == 0, computed.stderr
    assert computed.document["bit_exact"] is True
    assert computed.document["num_tensors"] == len(SHAPES)
    stored = run("apply", "--target", "cpt", "--residual", "r", "--no-verify", "--out", "stored")
    direct = run(*APPLY, "--out", "direct")
    assert (stored.status, direct.status) == (0, 0), stored.stderr + direct.stderr
    assert weights_of(family / "stored") == weights_of(family / "direct")
    base, instruct, cpt = (read_all(family / name) for name in ("base", "instruct", "cpt"))
    for name, merged in read_all(family / "direct").items():
        exact = cpt[name].double() + (instruct[name].double() - base[name].double())
        assert same_bits(merged, exact.to(torch.bfloat16)), name


def test_several_alphas_go_to_folders_of_their_own(family: Path, run: Run) -> None:
    done = run(*APPLY, "--alpha", "0.5", "--alpha", "1", "--alpha", "0", "--out", "o", "--json")
    assert done.status == 0, done.stderr
    assert [each["folder"] for each in done.document["outputs"]] == [
        "o/alpha_0.5",
        "o/alpha_1.0",
        "o/alpha_0.0",
    ]
    assert sorted(path.name for path in (family / "o").iterdir()) == [
        "alpha_0.0",
        "alpha_0.5",
        "alpha_1.0",
    ]
    assert weights_of(family / "o/alpha_0.0") == weights_of(family / "cpt")
    assert run(*APPLY, "--alpha", "0.5", "--out", "one").status == 0
    assert weights_of(family / "one") == weights_of(family / "o/alpha_0.5")


def test_json_is_the_only_thing_on_stdout(family: Path, run: Run) -> None:
    done = run(*APPLY, "--out", "o", "--json")
    assert done.document["verified"] is False
    assert done.document["outputs"][0]["num_parameters"] == NUM_PARAMETERS
    assert "apply o" in done.stderr
    told = run("inspect", "o")
    assert "merged model" in told.stdout
    assert told.stderr == ""


@pytest.mark.parametrize(
    ("options", "recipe"),
    [
        (["--method", "dare", "--drop-rate", "0.3", "--seed", "7"], ("method", "kind", "dare")),
        (["--method", "ties", "--density", "0.5"], ("method", "density", 0.5)),
        (["--method", "low_rank", "--rank", "2"], ("method", "rank", 2)),
        (["--method", "low_rank", "--explained-variance", "0.5"], ("method", "kind", "low_rank")),
        (["--cpt-strength", "0.5"], ("cpt_strength", None, 0.5)),
        (["--embedding-rows", "none"], ("embedding_rows", None, "none")),
        (["--auto-alpha", "projection"], ("auto_alpha", None, "projection")),
        (["--scale", "attention=0.5", "--scale", "layers.0-3=0"], ("scales", "layers.0-3", 0.0)),
    ],
)
def test_options_become_the_recipe_and_the_card_gives_them_back(
    family: Path, run: Run, options: list[str], recipe: tuple[str, str | None, object]
) -> None:
    done = run(*APPLY, *options, "--alpha", "0.7", "--out", "o")
    assert done.status == 0, done.stderr
    record = json.loads((family / "o/merge.json").read_text())
    field, key, value = recipe
    assert (record["recipe"][field][key] if key else record["recipe"][field]) == value
    card = (family / "o/README.md").read_text()
    (command,) = [line for line in card.splitlines() if line.startswith("cpt-residual apply")]
    again = command.split()[1:]
    again[again.index("--out") + 1] = "again"
    assert run(*again, "--no-verify").status == 0
    assert weights_of(family / "again") == weights_of(family / "o")


def test_a_dry_run_writes_nothing(family: Path, run: Run) -> None:
    before = sorted(family.rglob("*"))
    sizes = {name: sum(map(len, weights_of(family / name).values())) for name in ("cpt", "base")}
    done = run(*APPLY, "--alpha", "0.5", "--alpha", "1", "--out", "o", "--dry-run", "--json")
    assert done.status == 0, done.stderr
    assert done.document["write_bytes"] == 2 * sizes["cpt"]
    assert done.document["read_bytes"] == sizes["cpt"] + 2 * sizes["base"]
    assert {"headers", "shapes", "tokens", "room on the disk"} <= set(done.document["checks"])
    assert done.document["free_bytes"] > 0
    told = run("compute", *PAIR, "--out", "r", "--dry-run")
    assert told.status == 0, told.stderr
    assert "nothing (dry run)" in told.stdout
    assert f"({4 * NUM_PARAMETERS:,})" in told.stdout
    uploaded = run(*APPLY, "--out", "o", "--push", "org/name", "--dry-run")
    assert "o to org/name" in uploaded.stdout
    assert sorted(family.rglob("*")) == before


def test_a_dry_run_refuses_what_the_run_would(family: Path, run: Run) -> None:
    write_weights(family / "cpt", tensors(5, model__norm__weight=(9,)), num_shards=3)
    done = run(*APPLY, "--out", "o", "--dry-run")
    assert done.status == 2
    assert "model.norm.weight" in done.stderr


def test_lossy_storage_states_its_error(family: Path, run: Run) -> None:
    rounded = run("compute", *PAIR, "--out", "b", "--storage", "bf16", "--json").document
    assert rounded["storage"]["dtype"] == "bf16"
    assert rounded["relative_error"] > 0
    low = run("compute", *PAIR, "--out", "l", "--rank", "2", "--json").document
    assert low["storage"]["low_rank"]["rank"] == 2
    assert low["num_wrong"] > 0
    for name in ("b", "l"):
        verified = run("verify", name, *PAIR)
        assert verified.status == 0, verified.stderr
        assert "as recorded" in verified.stdout


def lora(folder: Path, base: Tensors) -> Tensors:
    """A rank-2 adapter of one module; returns base with it merged in, rounded once."""
    name = "model.layers.0.self_attn.q_proj"
    generator = torch.Generator().manual_seed(9)
    left, right = (torch.randn(shape, generator=generator) for shape in ((8, 2), (2, 8)))
    folder.mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    stored = {
        f"base_model.model.{name}.lora_{kind}.weight": value
        for kind, value in (("A", right), ("B", left))
    }
    save_file(stored, folder / "adapter_model.safetensors")
    exact = base[f"{name}.weight"].double() + 2.0 * left.double() @ right.double()
    return base | {f"{name}.weight": exact.to(torch.bfloat16)}


def test_an_adapter_as_target_is_merged_first(family: Path, run: Run) -> None:
    merged = lora(family / "lora", read_all(family / "base"))
    fake_model(family / "whole", merged)
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2}
    for name in ("base", "instruct", "whole"):
        config = family / name / "config.json"
        fields = {**json.loads(config.read_text()), **sizes, "num_hidden_layers": 1}
        config.write_text(json.dumps(fields))
    looked = run("inspect", "lora", "--json").document
    assert (looked["kind"], looked["num_parameters"]) == ("adapter", 32)
    planned = run("apply", "--target", "lora", *PAIR, "--out", "o", "--dry-run", "--json")
    assert planned.status == 0, planned.stderr
    assert "adapter" in planned.document["checks"]
    assert planned.document["write_bytes"] == 2 * (family / "base/model.safetensors").stat().st_size
    done = run("apply", "--target", "lora", *PAIR, "--no-verify", "--out", "o")
    assert done.status == 0, done.stderr
    expected = run("apply", "--target", "whole", *PAIR, "--no-verify", "--out", "expected")
    assert expected.status == 0, expected.stderr
    assert weights_of(family / "o") == weights_of(family / "expected")
    assert not (family / ".o.target").exists()
    inputs = json.loads((family / "o/merge.json").read_text())["inputs"]
    assert [each["name"] for each in inputs] == ["lora", "base", "instruct"]


def test_a_token_that_only_instruct_has(family: Path, run: Run) -> None:
    tokenizer = tiny_tokenizer.train()
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|call|>"]})
    tokenizer.chat_template = TINY_CHAT_TEMPLATE
    tiny_tokenizer.save(tokenizer, family / "instruct")
    for verb in (APPLY, ("compute", *PAIR)):
        refused = run(*verb, "--out", "x")
        assert refused.status == 2
        assert "<|call|>" in refused.stderr
        assert "--vocab-policy common_tokens" in refused.stderr
    aligned = ("--vocab-policy", "common_tokens")
    planned = run(*APPLY, *aligned, "--out", "o", "--dry-run")
    assert planned.status == 0, planned.stderr
    assert run(*APPLY, *aligned, "--out", "o").status == 0
    assert run("compute", *PAIR, *aligned, "--out", "r").status == 0
    assert run("verify", "r", *PAIR).status == 0
    stored = ("apply", "--target", "cpt", "--residual", "r", "--no-verify", *aligned)
    assert run(*stored, "--out", "p").status == 0
    assert weights_of(family / "o") == weights_of(family / "p")
    merged, instruct = read_all(family / "o"), read_all(family / "instruct")
    new = merged["model.embed_tokens.weight"][280]
    assert same_bits(new, instruct["model.embed_tokens.weight"][280])
    assert "common_tokens" in (family / "o/README.md").read_text()


def test_no_output_names_code_to_run(family: Path, run: Run) -> None:
    for name in ("base", "instruct", "cpt"):
        for file in ("config.json", "tokenizer_config.json"):
            path = family / name / file
            code = {"auto_map": {"AutoTokenizer": ["org/name--code.Tokenizer", None]}}
            path.write_text(json.dumps(json.loads(path.read_text()) | code))
    assert run("compute", *PAIR, "--out", "r").status == 0
    assert run(*APPLY, "--out", "o").status == 0
    assert run("export", "--to", "residuals", "--residual", "r", "--out", "p").status == 0
    written = [path for name in "rop" for path in (family / name).rglob("*.json")]
    assert {"config.json", "tokenizer_config.json"} <= {path.name for path in written}
    configs = [path for path in written if path.name.endswith("config.json")]
    assert [path for path in configs if "auto_map" in path.read_text()] == []
    assert "auto_map" in (family / "o" / "merge.json").read_text()  # says that it was left out


def test_bases_that_are_strangers_are_told(family: Path, run: Run) -> None:
    near = {name: value * 1.01 for name, value in read_all(family / "base").items()}
    fake_model(family / "near", near)
    quiet = run(*APPLY, "--target-base", "near", "--out", "quiet")
    assert quiet.status == 0, quiet.stderr
    assert "warning" not in quiet.stderr
    warned = run(*APPLY, "--target-base", "cpt", "--out", "o", "--json")
    assert warned.status == 0, warned.stderr
    assert "warning: the residual was made for weights (base) at a relative dist" in warned.stderr
    assert len(warned.document["outputs"]) == 1

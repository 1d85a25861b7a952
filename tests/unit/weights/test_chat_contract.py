"""What a merged directory must carry so that it answers like instruct and stops like it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cpt_residual.errors import CompatibilityError, FinalCheckError
from cpt_residual.modeling.token_side import token_map_hash
from cpt_residual.modeling.tokenizer import load_tokenizer
from cpt_residual.weights.merge.verification import final_stops
from cpt_residual.weights.tokens.chat_contract import (
    copy_instruct_side,
    eos_token_ids,
    eos_tokens,
    install,
    require_same_tokens_as,
)
from support.pico_family import Tensors, fake_model


@pytest.fixture
def instruct(tmp_path: Path, tensors: Tensors) -> Path:
    config = {"eos_token_id": [4, 1], "pad_token_id": 0, "bos_token_id": 2}
    folder = fake_model(tmp_path / "instruct", tensors, config=config)
    generation = {"eos_token_id": 4, "temperature": 0.6, "do_sample": True}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    (folder / "trace.jsonl").write_text("")
    return folder


@pytest.fixture
def side(tmp_path: Path, instruct: Path) -> Path:
    copy_instruct_side(instruct, tmp_path / "side")
    return tmp_path / "side"


def test_ids_come_from_all_three_places(instruct: Path) -> None:
    assert eos_token_ids(instruct) == [4, 1]
    (instruct / "generation_config.json").unlink()
    assert eos_token_ids(instruct) == [4, 1]
    (instruct / "config.json").write_text('{"model_type": "llama"}')
    assert eos_token_ids(instruct) == [1]  # the tokenizer's own


def test_the_union(tmp_path: Path, side: Path, tensors: Tensors, out: Path) -> None:
    target = fake_model(tmp_path / "target", tensors, config={"eos_token_id": 7, "rope_theta": 5.0})
    ids = install(instruct_side=side, base_eos=[9, 1], target=target, out=out)
    assert ids == [4, 1, 9, 7]
    config = json.loads((out / "config.json").read_text())
    assert config["eos_token_id"] == ids
    assert (config["pad_token_id"], config["bos_token_id"]) == (0, 2)
    assert config["rope_theta"] == 5.0
    generation = json.loads((out / "generation_config.json").read_text())
    assert generation == {"eos_token_id": ids, "temperature": 0.6, "do_sample": True}
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (out / name).read_bytes() == (side / name).read_bytes()
    assert not (side / "trace.jsonl").exists()


def test_ids_beyond_the_vocabulary(tmp_path: Path, side: Path, tensors: Tensors, out: Path) -> None:
    target = fake_model(tmp_path / "target", tensors, config={"vocab_size": 8})
    with pytest.raises(CompatibilityError, match="beyond its vocabulary of 8") as caught:
        install(instruct_side=side, base_eos=[9, 1], target=target, out=out)
    assert caught.value.problems == ("id 9",)


def test_one_id_stays_a_number_and_a_generation_config_is_made(
    tmp_path: Path, tensors: Tensors, out: Path
) -> None:
    model = fake_model(tmp_path / "model", tensors)
    assert install(instruct_side=model, base_eos=[1], target=model, out=out) == [1]
    generation = json.loads((out / "generation_config.json").read_text())
    assert generation == {"eos_token_id": 1}


def test_without_template_or_tokenizer(tmp_path: Path, side: Path, instruct: Path) -> None:
    (side / "chat_template.jinja").unlink()
    with pytest.raises(CompatibilityError, match="has no chat template"):
        install(instruct_side=side, base_eos=[], target=instruct, out=tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (instruct / name).unlink()
    with pytest.raises(CompatibilityError, match="has no tokenizer files"):
        copy_instruct_side(instruct, tmp_path / "side2")
    (instruct / "config.json").write_text('{"model_type": "nobody-knows"}')
    with pytest.raises(CompatibilityError, match="no tokenizer can be loaded"):
        eos_token_ids(instruct)


def test_an_end_of_text_without_a_token_has_no_name(instruct: Path) -> None:
    (instruct / "config.json").write_text('{"model_type": "llama", "eos_token_id": 9999}')
    assert eos_token_ids(instruct) == [4, 9999, 1]
    with pytest.raises(CompatibilityError, match="ids that its tokenizer does not have") as caught:
        eos_tokens(instruct)
    assert caught.value.problems == ("id 9999",)


def test_maps_must_be_the_same(tmp_path: Path, instruct: Path, tensors: Tensors) -> None:
    other = fake_model(tmp_path / "other", tensors)
    expected = token_map_hash(load_tokenizer(instruct))
    assert require_same_tokens_as(instruct, other) == expected
    fields = json.loads((other / "tokenizer.json").read_text())
    vocab = fields["model"]["vocab"]
    first, second = (token for token, number in vocab.items() if number in (100, 101))
    vocab[first], vocab[second] = vocab[second], vocab[first]
    (other / "tokenizer.json").write_text(json.dumps(fields))
    with pytest.raises(CompatibilityError) as caught:
        require_same_tokens_as(instruct, other, labels=("base", "instruct"))
    assert caught.value.what.startswith("base and instruct do not have the same tokens")
    assert [line.split(":")[0] for line in caught.value.problems] == ["id 100", "id 101"]


def test_no_heavy_library_is_imported(side: Path, instruct: Path, out: Path) -> None:
    script = (
        "import sys; from pathlib import Path\n"
        "from cpt_residual.weights.tokens.chat_contract import install\n"
        "side, target, out = map(Path, sys.argv[1:])\n"
        "install(instruct_side=side, base_eos=[1], target=target, out=out)\n"
        "print(sorted({'torch', 'transformers'} & sys.modules.keys()))\n"
    )
    command = [sys.executable, "-c", script, *map(str, (side, instruct, out))]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("own", [False, True])
def test_a_target_that_reads_images_keeps_its_processor(
    tmp_path: Path, instruct: Path, tensors: Tensors, own: bool, out: Path
) -> None:
    if own:
        (instruct / "processor_config.json").write_text('{"of": "instruct"}')
    copy_instruct_side(instruct, tmp_path / "side")
    target = fake_model(tmp_path / "target", tensors)
    named = {"auto_map": {"A": "b.C"}}
    (target / "preprocessor_config.json").write_text(json.dumps({"of": "target", **named}))
    install(instruct_side=tmp_path / "side", base_eos=[], target=target, out=out)
    found = {
        path.name: json.loads(path.read_text())["of"] for path in out.glob("*processor_config.json")
    }
    wanted = (
        {"processor_config.json": "instruct"} if own else {"preprocessor_config.json": "target"}
    )
    assert found == wanted
    assert not any("auto_map" in path.read_text() for path in out.glob("*.json"))


@pytest.mark.parametrize("in_store", [False, True])
def test_a_last_check_that_fails_over_any_file_keeps_the_weights(
    instruct: Path, in_store: bool
) -> None:
    (instruct / "generation_config.json").write_text("{")
    with pytest.raises(FinalCheckError, match="is not valid JSON") as caught:
        final_stops(instruct, instruct.parent / "out", in_store=in_store)
    remedy = "another input" if in_store else "after any other the merge is"
    assert remedy in caught.value.remedy

"""What does not load is said of the file or directory that is to blame."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, LlavaConfig

from cpt_residual.errors import CompatibilityError
from cpt_residual.modeling import loading
from support.pico_family import real_family


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("family")
    return real_family(root, model_type="llama", tied=False, dtype=torch.bfloat16)


@pytest.fixture
def model(tmp_path: Path, family: dict[str, Path]) -> Path:
    return Path(shutil.copytree(family["base"], tmp_path / "model"))


@pytest.mark.parametrize("fault", ["missing", "truncated", "broken index"])
def test_weights_to_blame(model: Path, fault: str) -> None:
    weights = model / "model.safetensors"
    if fault == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    else:
        weights.unlink()
    if fault == "broken index":
        (model / "model.safetensors.index.json").write_text('{"weight_map": 7}')
    with pytest.raises(CompatibilityError, match="the model does not load") as caught:
        loading.load_causal_lm(model, dtype=None)
    assert str(model) in caught.value.what
    assert "config.json does not load" not in str(caught.value)


def test_a_config_to_blame(model: Path) -> None:
    path = model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_attention_heads": 7}))
    with pytest.raises(CompatibilityError, match=r"config\.json does not load"):
        loading.load_causal_lm(model, dtype=None)


def test_a_nested_config_does_not_blame_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf.py").write_text("")
    (tmp_path / "config.json").write_text('{"auto_map": {"AutoConfig": "conf.Config"}}')
    text = AutoConfig.for_model("vit")
    assert text.name_or_path == ""
    with pytest.raises(CompatibilityError) as caught:
        loading.build_on_meta(text)
    assert "conf.py" not in str(caught.value)
    assert caught.value.what == "config.json does not load"
    assert LlavaConfig().text_config.name_or_path == ""

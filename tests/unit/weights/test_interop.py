"""The residuals package's layout and mergekit's configuration."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from cpt_residual.config.merging import MergeRecipe, Storage
from cpt_residual.errors import ArtifactError, CompatibilityError, ConfigError
from cpt_residual.methods.dare import Dare
from cpt_residual.methods.low_rank import LowRank
from cpt_residual.methods.ties import Ties
from cpt_residual.weights.interop.mergekit_yaml import mergekit_yaml
from cpt_residual.weights.interop.residuals_folder import (
    folder_delta,
    is_residuals_folder,
    read_residuals_folder,
    write_residuals_folder,
)
from cpt_residual.weights.merge.merge import Output, merge
from cpt_residual.weights.residual.compute import compute
from cpt_residual.weights.residual.residual_format import ResidualArtifact, open_residual
from cpt_residual.weights.residual.source import PairDelta
from support.interop_models import (
    DOWN,
    EMBEDDING,
    HEAD,
    NORM,
    QUERY,
    SHAPES,
    model,
    tensors_of,
    values,
)
from support.pico_family import Tensors, fake_model, opened, read_all, same_bits

WHOLE = Storage()


def stored_residual(
    root: Path, *, tied: bool = False, storage: Storage = WHOLE
) -> ResidualArtifact:
    """The residual of a pair in bf16, below `root`."""
    for number, name in enumerate(("base", "instruct", "target")):
        model(root / name, tensors_of(tied=tied, seed=number), tied=tied, num_shards=number + 1)
    base, instruct = (opened(root / name, name) for name in ("base", "instruct"))
    compute(base, instruct, root / "residual", storage=storage)
    return open_residual(root / "residual")


# --- the residuals package ------------------------------------------------------------------------
@pytest.mark.parametrize("tied", [False, True])
def test_layout_has_the_names_and_values_of_the_package(tmp_path: Path, tied: bool) -> None:
    residual = stored_residual(tmp_path, tied=tied)
    lost = write_residuals_folder(residual, tmp_path / "out", names=("b/b", "i/i"))

    left, right = (read_all(tmp_path / name) for name in ("instruct", "base"))
    expected = {name: left[name].float() - right[name].float() for name in left}
    if tied:  # the package takes its names from loaded models, which have both
        expected[HEAD] = expected[EMBEDDING]
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert lost == 0.0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == "float32"
    assert (config["base_model_name"], config["instruct_model_name"]) == ("b/b", "i/i")
    assert config["param_count"] == len(expected)
    names = "|".join(sorted(expected))
    assert config["parameter_names_hash"] == hashlib.sha256(names.encode()).hexdigest()
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    assert is_residuals_folder(tmp_path / "out")
    assert not is_residuals_folder(tmp_path / "base")


def test_a_stored_copy_of_a_tied_head_is_written_and_must_agree(tmp_path: Path) -> None:
    for number, name in enumerate(("base", "instruct")):
        tensors = tensors_of(tied=True, seed=number)
        model(tmp_path / name, {**tensors, HEAD: tensors[EMBEDDING].clone()}, tied=True)
    base, instruct = (opened(tmp_path / name, name) for name in ("base", "instruct"))
    compute(base, instruct, tmp_path / "residual")
    write_residuals_folder(open_residual(tmp_path / "residual"), tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(found[HEAD], found[EMBEDDING])

    source = folder_delta(read_residuals_folder(tmp_path / "out"), base)
    merge(base, source, [Output(1.0, tmp_path / "merged")])
    again = read_all(tmp_path / "merged")
    assert all(same_bits(again[name], value) for name, value in read_all(instruct.path).items())

    found[HEAD][0, 0] += 1.0
    save_file(found, tmp_path / "out" / "model.safetensors")
    with pytest.raises(CompatibilityError, match=r"lm_head\.weight is stored with other values"):
        folder_delta(read_residuals_folder(tmp_path / "out"), base)


def test_bf16_and_factors_state_what_rounding_has_cost(tmp_path: Path) -> None:
    residual = stored_residual(tmp_path / "whole")
    lost = write_residuals_folder(residual, tmp_path / "bf16", dtype="BF16")
    found = load_file(tmp_path / "bf16" / "model.safetensors")
    left, right = (read_all(tmp_path / "whole" / name) for name in ("instruct", "base"))
    exact = {name: left[name].double() - right[name].double() for name in left}
    assert all(same_bits(found[name], exact[name].to(torch.bfloat16)) for name in exact)
    error = math.sqrt(sum(float((found[n].double() - exact[n]).square().sum()) for n in exact))
    norm = math.sqrt(sum(float(exact[n].square().sum()) for n in exact))
    assert lost == pytest.approx(error / norm)
    assert 1e-4 < lost < 4e-3

    low = stored_residual(tmp_path / "low", storage=Storage(low_rank=LowRank(rank=8)))
    write_residuals_folder(low, tmp_path / "factors")
    found = load_file(tmp_path / "factors" / "model.safetensors")
    assert found.keys() == exact.keys()
    assert torch.allclose(found[QUERY].double(), exact[QUERY], atol=1e-5)


def test_merging_from_the_layout_gives_the_same_weights(tmp_path: Path) -> None:
    stored_residual(tmp_path)
    write_residuals_folder(open_residual(tmp_path / "residual"), tmp_path / "out")
    target = opened(tmp_path / "target")
    source = folder_delta(read_residuals_folder(tmp_path / "out"), target)
    (report,) = merge(target, source, [Output(0.7, tmp_path / "merged")])
    pair = PairDelta(opened(tmp_path / "base", "base"), opened(tmp_path / "instruct", "instruct"))
    (expected,) = merge(target, pair, [Output(0.7, tmp_path / "expected")])
    assert report.residual_norm == expected.residual_norm
    names = [path.name for path in (tmp_path / "expected").glob("*.safetensors")]
    assert names
    for name in [*names, "tokenizer.json", "chat_template.jinja"]:
        left, right = ((tmp_path / folder / name).read_bytes() for folder in ("merged", "expected"))
        assert left == right, name


def foreign_layout(root: Path, tensors: Tensors, *, num_shards: int = 1) -> Path:
    """A folder as the package itself writes it."""
    folder = fake_model(root, tensors, num_shards=num_shards)
    names = sorted(tensors)
    shapes = "|".join(f"{name}:{list(tensors[name].shape)}" for name in names)
    config = {
        "residuals_version": "1.0",
        "format": "pytorch",
        "dtype": "float32",
        "param_count": len(tensors),
        "shapes_hash": hashlib.sha256(shapes.encode()).hexdigest(),
        "parameter_names_hash": hashlib.sha256("|".join(names).encode()).hexdigest(),
        "tokenizer_name": None,
        "created_at": "2025-01-01T00:00:00+00:00",
        "library": {"package": "residuals"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("num_shards", [1, 3])
def test_a_foreign_folder_is_read_and_applied(
    tmp_path: Path, num_shards: int, dtype: torch.dtype
) -> None:
    delta = values(5, torch.float32, scale=0.1)
    folder = read_residuals_folder(
        foreign_layout(tmp_path / "theirs", delta, num_shards=num_shards)
    )
    assert folder.config.base_model_name is None
    target = opened(model(tmp_path / "target", values(1, dtype)))
    merge(target, folder_delta(folder, target), [Output(2.0, tmp_path / "merged")])
    merged, start = read_all(tmp_path / "merged"), read_all(target.path)
    for name, value in merged.items():
        exact = start[name].double() + 2.0 * delta[name].double()
        assert same_bits(value, exact.to(dtype)), name
    no_mean = pytest.raises(CompatibilityError, match="does not keep base's mean row")
    with folder_delta(folder, target).opened() as opened_delta, no_mean:
        opened_delta.base_mean(EMBEDDING)


def test_a_foreign_folder_that_cannot_be_trusted_is_refused(tmp_path: Path) -> None:
    folder = foreign_layout(tmp_path / "theirs", values(5, torch.float32))
    config = json.loads((folder / "config.json").read_text())

    def refused(**changes: object) -> str:
        (folder / "config.json").write_text(json.dumps({**config, **changes}))
        with pytest.raises((ArtifactError, CompatibilityError)) as caught:
            read_residuals_folder(folder)
        return str(caught.value)

    assert "param_count: 4, the shards have 5" in refused(param_count=4)
    assert "shapes_hash: 00" in refused(shapes_hash="00")
    assert "scale: Extra inputs" in refused(scale=2.0)
    assert "version 2.0 of the layout" in refused(residuals_version="2.0")
    (folder / "cpt_residual.json").write_text("{}")
    assert "of an earlier cpt-residual" in refused()
    (folder / "cpt_residual.json").unlink()
    assert "library: Input should be" in refused(library=None)
    (folder / "model.safetensors").write_bytes(b"short")
    assert "not a safetensors file" in refused()
    (folder / "model.safetensors.index.json").write_text("{}")
    assert "holds both" in refused()
    (folder / "model.safetensors").unlink()
    assert "no weight_map" in refused()
    index = json.dumps({"weight_map": {"a": "../model.safetensors"}})
    (folder / "model.safetensors.index.json").write_text(index)
    assert "'../model.safetensors'" in refused()


def test_a_foreign_folder_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    delta = values(5, torch.float32)
    del delta[NORM]
    folder = read_residuals_folder(foreign_layout(tmp_path / "theirs", delta))
    target = opened(model(tmp_path / "target", values(1)))
    with pytest.raises(CompatibilityError, match=r"model\.norm\.weight: residual missing"):
        merge(target, folder_delta(folder, target), [Output(1.0, tmp_path / "out")])


def test_a_value_too_large_for_fp16_is_refused(tmp_path: Path) -> None:
    start = values(0, torch.float32)
    end = {name: value.clone() for name, value in start.items()}
    end[NORM][3] = 1e5
    base = opened(model(tmp_path / "base", start), "base")
    compute(base, opened(model(tmp_path / "instruct", end), "instruct"), tmp_path / "residual")
    with pytest.raises(CompatibilityError, match="larger than F16 can hold"):
        write_residuals_folder(open_residual(tmp_path / "residual"), tmp_path / "out", dtype="F16")
    assert not (tmp_path / "out").exists()


# --- mergekit -------------------------------------------------------------------------------------
def yaml_of(root: Path, alpha: float = 1.0, **options: object) -> dict[str, object]:
    if not root.exists():
        stored_residual(root)
    base, instruct, target = (opened(root / n, n) for n in ("base", "instruct", "target"))
    recipe = MergeRecipe.model_validate(options)
    text = mergekit_yaml(base=base, instruct=instruct, target=target, alpha=alpha, recipe=recipe)
    assert text.startswith("# written by cpt_residual")
    return yaml.safe_load(text)


def weights_of(fields: dict[str, object], key: str = "weight") -> list[object]:
    models = fields["models"]
    assert isinstance(models, list)
    return [each["parameters"][key] for each in models]


def resolved(setting: object, name: str) -> object:
    """A parameter as mergekit resolves it: the first filter that is part of the name."""
    if not isinstance(setting, list):
        return setting
    return next(each["value"] for each in setting if each.get("filter", "") in name)


def test_plain_addition_is_task_arithmetic(tmp_path: Path) -> None:
    fields = yaml_of(tmp_path / "family", 0.6, cpt_strength=0.9)
    assert fields["merge_method"] == "task_arithmetic"
    assert fields["base_model"] == str(tmp_path / "family" / "base")
    models = fields["models"]
    assert isinstance(models, list)
    assert [Path(each["model"]).name for each in models] == ["target", "instruct"]
    assert weights_of(fields) == [0.9, 0.6]
    assert (fields["dtype"], fields["out_dtype"]) == ("float32", "bfloat16")
    assert "tokenizer_source" not in fields  # more rows than tokens: mergekit would cut them


def test_scales_become_filters_that_take_whole_names(tmp_path: Path) -> None:
    scales = {"mlp": 0.5, "norm": 2.0}
    fields = yaml_of(tmp_path / "family", 0.5, scales=scales, embedding_rows="none")
    setting = weights_of(fields)[1]
    expected = {EMBEDDING: 0.0, HEAD: 0.0, DOWN: 0.25, NORM: 1.0, QUERY: 0.5}
    assert {name: resolved(setting, name) for name in SHAPES} == expected


def test_a_name_that_is_part_of_another_does_not_shadow_it(tmp_path: Path) -> None:
    names = {"a.weight": 4, "a.weight_scale": 4, "b.a.weight": 4}
    tensors = {name: torch.ones(count) for name, count in names.items()}
    models = {
        n: opened(fake_model(tmp_path / n, tensors), n) for n in ("base", "instruct", "target")
    }
    recipe = MergeRecipe(scales={"a.weight": 0.5})
    fields = yaml.safe_load(mergekit_yaml(**models, alpha=1.0, recipe=recipe))
    setting = weights_of(fields)[1]
    assert [resolved(setting, name) for name in names] == [0.5, 1.0, 1.0]


def test_a_class_that_is_not_known_needs_no_rows_where_nothing_names_them(tmp_path: Path) -> None:
    for number, name in enumerate(("base", "instruct", "target")):
        model(tmp_path / name, values(number), model_type="of_the_future")
    fields = yaml_of(tmp_path, 0.5, scales={NORM: 2.0})
    setting = weights_of(fields)[1]
    assert [resolved(setting, name) for name in (NORM, EMBEDDING)] == [1.0, 0.5]
    assert "tokenizer_source" not in fields
    with pytest.raises(CompatibilityError, match="one row per token cannot be told"):
        yaml_of(tmp_path, 0.5, embedding_rows="none")


@pytest.mark.parametrize("density", [0.2, 0.07, 1.0])
def test_ties_keeps_as_many_elements(tmp_path: Path, density: float) -> None:
    fields = yaml_of(tmp_path / "family", 0.5, method=Ties(density=density), cpt_strength=0.5)
    assert fields["merge_method"] == "ties"
    assert fields["parameters"] == {"normalize": True, "lambda": 0.5}
    for setting in weights_of(fields, "density"):
        for name, shape in SHAPES.items():
            number = math.prod(shape)
            found = resolved(setting, name)
            assert isinstance(found, float)
            assert int(found * number) == math.ceil(round(density * number, 9))


def test_dare_rescales_by_the_rate(tmp_path: Path) -> None:
    fields = yaml_of(tmp_path / "family", 0.5, method=Dare(drop_rate=0.75, seed=3))
    assert fields["merge_method"] == "dare_linear"
    assert weights_of(fields) == [1.0, 2.0]
    assert weights_of(fields, "density") == [1.0, 0.25]
    assert fields["parameters"] == {"normalize": False, "rescale": False}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": LowRank(rank=2)}, "method: low_rank"),
        ({"method": Ties(), "cpt_strength": 0.5}, "method: ties with cpt_strength 0.5"),
        ({"method": Ties(), "scales": {"mlp": 0.5}}, "mergekit's mean is weighted"),
        ({"auto_alpha": "projection"}, "auto_alpha: projection"),
        ({"embedding_rows": "special_tokens"}, "embedding_rows: special_tokens"),
        ({"vocab_policy": "common_tokens"}, "vocab_policy: common_tokens"),
    ],
)
def test_what_mergekit_cannot_express_is_refused(
    tmp_path: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(CompatibilityError, match=message):
        yaml_of(tmp_path / "family", **options)


def test_an_alpha_that_is_no_number_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="alpha is nan"):
        yaml_of(tmp_path / "family", math.nan)

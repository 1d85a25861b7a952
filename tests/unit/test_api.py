"""The weights tools as functions, with references of every form."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cpt_residual import api
from cpt_residual.config.merging import MergeRecipe
from cpt_residual.errors import ArtifactError, CompatibilityError, ConfigError
from cpt_residual.weights.apply import job
from cpt_residual.weights.apply import open_inputs as sources
from cpt_residual.weights.interop.adapter import merge_adapter
from cpt_residual.weights.io import reader
from cpt_residual.weights.io.checkpoint import Checkpoint
from cpt_residual.weights.io.reader import Streaming
from support.pico_family import read_all, real_family, same_bits, write_weights


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("family")
    real_family(root, model_type="qwen2", tied=False, dtype=torch.bfloat16)
    return root


@pytest.fixture
def pair(family: Path) -> api.Pair:
    return api.Pair(str(family / "base"), family / "instruct")


def test_compute_apply_verify(family: Path, pair: api.Pair, tmp_path: Path) -> None:
    told: list[tuple[int, int, str]] = []
    streaming = Streaming(progress=lambda *step: told.append(step))
    manifest = api.compute(pair.base, pair.instruct, tmp_path / "r", streaming=streaming)
    assert manifest.bit_exact
    assert told[-1] == (manifest.num_parameters, manifest.num_parameters, "parameters")
    found = api.verify_residual(tmp_path / "r", base=pair.base, instruct=pair.instruct)
    assert found.checks[-1] == "base + residual is instruct bit for bit"
    reports = api.apply(family / "base_cpt", tmp_path / "r", tmp_path / "o", alphas=[0.5, 1.0])
    assert [report.folder for report in reports] == [
        tmp_path / "o/alpha_0.5",
        tmp_path / "o/alpha_1.0",
    ]
    assert reports[0].residual_norm == pytest.approx(reports[1].residual_norm / 2)
    checks = api.verify_model(tmp_path / "o/alpha_1.0").checks
    assert checks[-1] == "generation stops at 4, 1"
    assert api.card(tmp_path / "o/alpha_1.0").startswith("---\n")
    assert api.inspect(tmp_path / "o/alpha_0.5").kind == "merged model"
    assert list(tmp_path.glob("**/.*")) == [], "no scratch is left"


def test_instruct_is_rebuilt_from_base(family: Path, pair: api.Pair, tmp_path: Path) -> None:
    """base + 1 * residual is instruct, bit for bit, in base's layout."""
    options = api.ApplyOptions(verify=False)
    api.apply(pair.base, pair, tmp_path / "o", options=options)
    rebuilt, instruct = read_all(tmp_path / "o"), read_all(family / "instruct")
    assert rebuilt.keys() == instruct.keys()
    assert all(same_bits(rebuilt[name], instruct[name]) for name in instruct)


def test_the_base_of_a_pair_serves_a_recipe(family: Path, pair: api.Pair, tmp_path: Path) -> None:
    recipe = MergeRecipe(cpt_strength=0.0)
    options = api.ApplyOptions(verify=False)
    api.apply(family / "base_cpt", pair, tmp_path / "o", recipe=recipe, options=options)
    merged, instruct = read_all(tmp_path / "o"), read_all(family / "instruct")
    assert all(same_bits(merged[name], instruct[name]) for name in instruct)


def test_a_base_is_read_only_by_recipes_that_need_it(
    family: Path, pair: api.Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    near = Path(shutil.copytree(family / "base", tmp_path / "near"))
    opened: list[Path] = []
    real = reader.InputFile

    def recording(path: Path, num_bytes: int, *, once: bool) -> reader.InputFile:
        opened.append(path.parent)
        return real(path, num_bytes, once=once)

    monkeypatch.setattr(reader, "InputFile", recording)
    options = api.ApplyOptions(target_base=near, verify=False)
    for number, recipe in enumerate([MergeRecipe(), MergeRecipe(cpt_strength=0.5)]):
        out = tmp_path / f"o{number}"
        api.apply(family / "base_cpt", pair, out, recipe=recipe, options=options)
        assert family / "base_cpt" in opened
        assert (near in opened) == recipe.needs_base


def test_a_base_that_does_not_fit_is_refused_whatever_the_recipe(
    family: Path, pair: api.Pair, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(family / "base", tmp_path / "other"))
    weights = read_all(other)
    weights.pop("model.norm.weight")
    for shard in other.glob("*.safetensors*"):
        shard.unlink()
    save_file(weights, other / "model.safetensors")
    options = api.ApplyOptions(target_base=other, verify=False)
    for call in (api.plan_apply, api.apply):
        with pytest.raises(CompatibilityError, match="target_base does not fit target"):
            call(family / "base_cpt", pair, tmp_path / "o", options=options)
    assert not (tmp_path / "o").exists()


def inputs_of(model: Path) -> dict[str, dict[str, str]]:
    record = json.loads((model / "merge.json").read_text())
    return {each["role"]: each for each in record["inputs"]}


def content_of(model: Path) -> str:
    hashes = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(model.glob("*.safetensors"))
    }
    return hashlib.sha256(json.dumps(hashes, separators=(",", ":")).encode()).hexdigest()


def test_inputs_of_one_shape_are_told_apart(family: Path, tmp_path: Path) -> None:
    for name in ("base", "instruct", "base_cpt"):
        shutil.copytree(family / name, tmp_path / "other" / name)
    pair, target = api.Pair(family / "base", family / "instruct"), tmp_path / "other/base_cpt"
    weights = read_all(target)
    weights["model.norm.weight"] *= 1.5
    write_weights(target, weights)
    api.apply(family / "base_cpt", pair, tmp_path / "one")
    api.apply(target, pair, tmp_path / "two")
    one, two = inputs_of(tmp_path / "one"), inputs_of(tmp_path / "two")
    assert one["target"]["headers"] == two["target"]["headers"]
    for role in ("base", "instruct"):
        assert one[role]["content"] == two[role]["content"] == content_of(family / role)
    assert one["target"]["content"] == content_of(family / "base_cpt")
    assert two["target"]["content"] == content_of(target)
    assert f"shards {content_of(target)[:12]}" in (tmp_path / "two/README.md").read_text()
    api.compute(pair.base, pair.instruct, tmp_path / "r")
    api.apply(target, tmp_path / "r", tmp_path / "three")
    stored = inputs_of(tmp_path / "three")
    assert {role: stored[role]["content"] for role in two} == {
        role: two[role]["content"] for role in two
    }
    assert len(stored["residual"]["content"]) == 64


def test_without_verification_headers_are_recorded(
    family: Path, pair: api.Pair, tmp_path: Path
) -> None:
    options = api.ApplyOptions(verify=False)
    api.apply(family / "base_cpt", pair, tmp_path / "o", options=options)
    assert all(each["content"] is None for each in inputs_of(tmp_path / "o").values())
    assert "(layout alone)" in (tmp_path / "o/README.md").read_text()


def test_an_extra_tensor_is_found_before_the_work(
    family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that base, instruct and target all have."""
    for name in ("base", "instruct", "base_cpt"):
        shutil.copytree(family / name, tmp_path / name)
        weights = read_all(tmp_path / name)
        weights["model.layers.9.mlp.extra.weight"] = torch.ones(2, 2, dtype=torch.bfloat16)
        for path in (tmp_path / name).glob("model*"):
            path.unlink()
        write_weights(tmp_path / name, weights)

    def started(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr(job, "merged_models", started)
    pair = api.Pair(tmp_path / "base", tmp_path / "instruct")
    with pytest.raises(CompatibilityError, match="are not those of its config") as caught:
        api.apply(tmp_path / "base_cpt", pair, tmp_path / "o")
    assert caught.value.problems == ("unexpected: model.layers.9.mlp.extra.weight",)


def test_plans_agree_with_what_is_done(family: Path, pair: api.Pair, tmp_path: Path) -> None:
    planned = api.plan_apply(family / "base_cpt", pair, tmp_path / "o", alphas=[0.5, 1.0])
    computed = api.plan_compute(pair.base, pair.instruct, tmp_path / "r")
    assert list(tmp_path.iterdir()) == []
    options = api.ApplyOptions(verify=False)
    api.apply(family / "base_cpt", pair, tmp_path / "o", alphas=[0.5, 1.0], options=options)
    api.compute(pair.base, pair.instruct, tmp_path / "r")
    written = sum(path.stat().st_size for path in (tmp_path / "o").rglob("*.safetensors"))
    assert planned.write_bytes == written
    assert planned.verify_bytes > planned.write_bytes / 2
    shards = sum(path.stat().st_size for path in (tmp_path / "r").glob("*.safetensors"))
    assert 0 <= shards - computed.write_bytes < 5000, "headers are all that is not counted"
    assert planned.outputs == [str(tmp_path / "o/alpha_0.5"), str(tmp_path / "o/alpha_1.0")]


def test_geometry_and_ancestry(family: Path, pair: api.Pair) -> None:
    report = api.geometry(pair, family / "base_cpt")
    assert report.total.drift == pytest.approx(0.08, abs=0.02)
    assert report.total.instruct_delta_norm is None
    assert api.ancestry_warnings(pair.base, pair.base) == []


def test_a_path_is_never_looked_for_on_the_hub(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="org/name is not a directory"):
        api.compute(Path("org/name"), Path("org/other"), tmp_path / "r")
    with pytest.raises(ConfigError, match="is not a commit"):
        api.compute("org/name@v1", "org/other@v1", tmp_path / "r")


@pytest.mark.parametrize("alphas", [[], [1.0, 1], [float("inf")]])
def test_alphas_that_make_no_sense(alphas: list[float], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="alphas do not make sense"):
        api.output_folders(tmp_path / "o", alphas)


def test_an_output_that_fails_its_check_does_not_appear(
    family: Path, pair: api.Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cpt_residual.weights.merge import verification

    def runs_on(model: Path) -> list[int]:
        raise CompatibilityError(f"{model.name} does not stop at its EOS token ids")

    monkeypatch.setattr(verification, "verify_stops", runs_on)
    with pytest.raises(CompatibilityError, match="does not stop"):
        api.apply(family / "base_cpt", pair, tmp_path / "o")
    assert [path.name for path in tmp_path.iterdir()] == [".o.partial"]  # for the next call


class _Killed(BaseException):
    """What leaves everything as it is."""


@contextmanager
def killed_before_the_record(monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
    """An apply ends when its models are whole and merge.json would be written."""

    def killed() -> str:
        raise _Killed

    with monkeypatch.context() as patch:
        patch.setattr(job, "code_version", killed)
        with pytest.raises(_Killed):
            yield


def test_what_is_reported_is_where_it_was_asked_for(
    family: Path, pair: api.Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Work that was moved while it lay still is finished where it lies now."""

    options = api.ApplyOptions(verify=False)
    with killed_before_the_record(monkeypatch):
        api.apply(family / "base_cpt", pair, tmp_path / "one/out", options=options)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    (report,) = api.apply(family / "base_cpt", pair, tmp_path / "two/out", options=options)
    assert report.folder == tmp_path / "two/out"
    assert (tmp_path / "two/out/merge.json").is_file()
    left = [path.name for path in (tmp_path / "one").rglob("*")]
    assert "model.safetensors" in left
    assert "merge.json" not in left


def lora(folder: Path) -> Path:
    """An adapter of the first query projection of the family's base_cpt."""
    folder.mkdir()
    config = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 4,
        "target_modules": ["0.self_attn.q_proj"],
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_an_adapter_is_not_merged_again(
    family: Path, pair: api.Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An apply to an adapter resumes: its merged target is kept with the work."""
    name = "model.layers.0.self_attn.q_proj"
    rows, columns = read_all(family / "base_cpt")[f"{name}.weight"].shape
    adapter = lora(tmp_path / "lora")
    factors = {"A": torch.ones(2, columns), "B": torch.ones(rows, 2)}
    save_file(
        {f"base_model.model.{name}.lora_{half}.weight": each for half, each in factors.items()},
        adapter / "adapter_model.safetensors",
    )
    merged: list[Path] = []

    def counted(folder: Path, base: Checkpoint, out: Path, *, streaming: Streaming) -> Path:
        merged.append(out)
        return merge_adapter(folder, base, out, streaming=streaming)

    def apply(out: str, base: str = "base_cpt") -> None:
        options = api.ApplyOptions(target_base=family / base, verify=False)
        api.apply(adapter, pair, tmp_path / out, options=options)

    monkeypatch.setattr(sources, "merge_adapter", counted)
    apply("expected")
    with killed_before_the_record(monkeypatch):
        apply("out")
    assert len(merged) == 2
    (shard,) = tmp_path.glob(".out.partial/out/*.safetensors")
    written = shard.stat().st_mtime_ns
    apply("out")
    assert len(merged) == 2
    assert (tmp_path / "out" / shard.name).stat().st_mtime_ns == written, "not written again"
    left, right = read_all(tmp_path / "expected"), read_all(tmp_path / "out")
    assert all(same_bits(right[name], value) for name, value in left.items())
    assert not list(tmp_path.glob(".*"))
    with killed_before_the_record(monkeypatch):
        apply("other")
    apply("other", base="base")
    assert len(merged) == 4, "of another base"
    assert not list(tmp_path.glob(".*"))


def test_a_damaged_residual_is_found_before_anything_appears(
    family: Path, pair: api.Pair, tmp_path: Path
) -> None:
    """Turned signs leave every norm as it was: only the recorded sha256 shows them."""
    api.compute(pair.base, pair.instruct, tmp_path / "r")
    shard = next((tmp_path / "r").glob("residual-*.safetensors"))
    raw = bytearray(shard.read_bytes())
    start = 8 + int.from_bytes(raw[:8], "little")
    raw[start + 3 :: 4] = bytes(value ^ 0x80 for value in raw[start + 3 :: 4])
    shard.write_bytes(raw)
    planned = api.plan_apply(family / "base_cpt", tmp_path / "r", tmp_path / "o")
    unchecked = api.plan_apply(
        family / "base_cpt", tmp_path / "r", tmp_path / "o", options=api.ApplyOptions(verify=False)
    )
    assert planned.read_bytes >= unchecked.read_bytes + len(raw)
    with pytest.raises(ArtifactError, match="is not what was written") as caught:
        api.apply(family / "base_cpt", tmp_path / "r", tmp_path / "o")
    assert shard.name in str(caught.value)
    assert not (tmp_path / "o").exists()

"""Released models from a local directory or the hub cache: pinned, checked, linked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import NoReturn

import huggingface_hub
import pytest
import torch
from httpx2 import Request, Response
from huggingface_hub import errors

from cpt_residual.config.schema import PretrainedModel
from cpt_residual.core.hashing import file_sha256
from cpt_residual.core.stage import RunContext, Stage
from cpt_residual.errors import ArtifactError, CompatibilityError, CptResidualError
from cpt_residual.stages.source import Source, source_files
from support.pico_family import Tensors, fake_model, read_all, write_weights

COMMIT = "0123456789" * 4


@pytest.fixture
def model(tmp_path: Path) -> Path:
    tensors = {"model.embed_tokens.weight": torch.ones(4, 2), "model.norm.weight": torch.ones(2)}
    folder = fake_model(tmp_path / "model", tensors, num_shards=2)
    for name in (
        "README.md",
        "pytorch_model.bin",
        "optimizer.pt",
        ".hidden.json",
        "trainer_state.json",
    ):
        (folder / name).write_text("{}")
    return folder


def local(folder: Path) -> Source:
    hashes = {name: file_sha256(folder / name) for name in source_files(folder)}
    model = PretrainedModel(kind="pretrained", source=str(folder))
    return Source(key="base", model=model, file_hashes=hashes)


def hub(num_parameters: int | None = None) -> Source:
    model = PretrainedModel(
        kind="pretrained", source="org/name", revision=COMMIT, num_parameters=num_parameters
    )
    return Source(key="base", model=model)


def build(stage: Source, work: Path) -> dict[str, object]:
    return dict(stage.build({}, work, RunContext(run_dir=work)))


def test_a_local_directory_becomes_links_and_copies(model: Path, tmp_path: Path) -> None:
    stage = local(model)
    metrics = build(stage, tmp_path / "work")
    build(stage, tmp_path / "work")  # again over what a kill left
    out = tmp_path / "work" / "out"
    assert sorted(path.name for path in out.iterdir()) == [
        "chat_template.jinja",
        "config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert all(path.is_symlink() == (path.suffix == ".safetensors") for path in out.iterdir())
    assert read_all(out).keys() == read_all(model).keys()
    assert metrics == {
        "num_parameters": 10,
        "num_bytes": sum(path.stat().st_size for path in model.glob("*.safetensors")),
        "dtypes": "F32",
        "revision": "local files",
    }
    assert isinstance(stage, Stage)
    assert stage.links_allowed


def test_identity_is_content_not_place(model: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(model, tmp_path / "elsewhere"))
    assert local(model).recipe() == local(moved).recipe()
    (moved / "README.md").write_text("other words")
    assert local(model).recipe() == local(moved).recipe()
    config = json.loads((moved / "config.json").read_text())
    (moved / "config.json").write_text(json.dumps({**config, "rope_theta": 1.0}))
    assert local(model).recipe() != local(moved).recipe()
    assert hub().recipe().model_dump() == {
        "hub_id": "org/name",
        "revision": COMMIT,
        "files": None,
    }


def test_estimates(model: Path) -> None:
    assert local(model).num_parameters() == 10
    assert hub(7_000).num_parameters() == 7_000
    assert hub().num_parameters() == 0
    assert hub(7_000).cost().disk_bytes == 14_000
    assert local(model).cost().disk_bytes == 0
    assert local(model).node == "base"
    assert local(model).inputs() == {}


def test_files_that_changed_since_the_plan(model: Path, tmp_path: Path) -> None:
    stage = local(model)
    tensors: Tensors = {name: value + 1 for name, value in read_all(model).items()}
    write_weights(model, tensors, num_shards=2)
    with pytest.raises(ArtifactError, match="the files are not those that were pinned") as caught:
        build(stage, tmp_path / "work")
    assert [line.split(":")[0] for line in caught.value.problems] == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]
    (model / "added_tokens.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"added_tokens\.json: added or removed"):
        build(stage, tmp_path / "work")
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "unheard-of"}, r"config\.json does not load"),
        ({"num_attention_heads": 7}, r"config\.json does not load"),
    ],
)
def test_a_config_that_does_not_load(
    model: Path, tmp_path: Path, config: dict[str, object], message: str
) -> None:
    fields = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**fields, **config}))
    with pytest.raises(CompatibilityError, match=message):
        build(local(model), tmp_path / "work")


def test_without_tokenizer(model: Path, tmp_path: Path) -> None:
    for file in model.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(CptResidualError, match="tokenizer"):
        build(local(model), tmp_path / "work")


# --- the hub -------------------------------------------------------------------------------------
@pytest.fixture
def cache(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A snapshot in the layout of the hub's cache: links to blobs named by sha256."""
    snapshot, blobs = tmp_path / "cache" / "snapshots" / COMMIT, tmp_path / "cache" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for name in source_files(model):
        blob = blobs / file_sha256(model / name)
        shutil.copy(model / name, blob)
        (snapshot / name).symlink_to(Path("../../blobs") / blob.name)

    def snapshot_download(repo_id: str, *, revision: str, **patterns: list[str]) -> str:
        assert (repo_id, revision) == ("org/name", COMMIT)
        assert not any("bin" in pattern for pattern in patterns["allow_patterns"])
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return blobs


def test_a_hub_snapshot(cache: Path, tmp_path: Path) -> None:
    metrics = build(hub(), tmp_path / "work")
    assert metrics["revision"] == COMMIT
    for path in (tmp_path / "work" / "out").glob("*.safetensors"):
        assert path.readlink().parent == cache.resolve()


def test_a_damaged_blob(cache: Path, tmp_path: Path) -> None:
    blob = max(cache.iterdir(), key=lambda path: path.read_bytes()[8:9] == b"{")
    raw = bytearray(blob.read_bytes())
    raw[-1] ^= 1
    blob.write_bytes(raw)
    with pytest.raises(ArtifactError, match=rf"sha256 .*, expected {blob.name}"):
        build(hub(), tmp_path / "work")


RESPONSE = Response(404, request=Request("GET", "https://huggingface.co/org/name"))


@pytest.mark.parametrize(
    ("error", "what", "remedy"),
    [
        (errors.GatedRepoError("403", response=RESPONSE), "is gated", "Accept its licence on"),
        (errors.RevisionNotFoundError("404", response=RESPONSE), "no commit", "`revision`"),
        (errors.RepositoryNotFoundError("404", response=RESPONSE), "no model", "`source`"),
        (
            errors.LocalEntryNotFoundError("offline"),
            "is not in the hub cache",
            f"hf download org/name --revision {COMMIT}",
        ),
        (ConnectionError(""), "cannot be fetched", "hf download org/name"),
    ],
)
def test_the_hub_refuses(
    error: Exception, what: str, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def snapshot_download(*args: object, **kwargs: object) -> NoReturn:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(ArtifactError) as caught:
        build(hub(), tmp_path)
    assert what in caught.value.what
    assert remedy in caught.value.remedy

"""How a merge survives interruptions, and what it refuses to mix."""

from __future__ import annotations

import errno
import json
import os
import time
from pathlib import Path

import pytest

from cpt_residual.config.merging import MergeRecipe
from cpt_residual.core import disk
from cpt_residual.errors import (
    ArtifactError,
    DiskSpaceError,
)
from cpt_residual.weights.io.direct import OutputFile
from cpt_residual.weights.io.reader import DEFAULT_STREAMING, Streaming
from cpt_residual.weights.merge.merge import Output, merge
from support.merge_family import Family
from support.pico_family import same_bits


class _Interrupted(BaseException):
    """What a signal raises."""


def _done(family: Family) -> list[str]:
    """Shards that the journal lists."""
    journal = family.root / ".out.partial/journal.json"
    return sorted(json.loads(journal.read_text())["files"])


def _until(family: Family, num_done: int) -> Streaming:
    """Goes on to so many elements, and until a shard is complete."""

    def progress(done: int, total: int, unit: str) -> None:
        if done >= num_done:
            while not _done(family):  # they are flushed in the background
                time.sleep(0.01)
            raise _Interrupted

    return Streaming(progress=progress, threads=1)


def test_a_killed_merge_goes_on_where_it_was(family: Family) -> None:
    whole, expected = family.merge(MergeRecipe(), "whole")
    with pytest.raises(_Interrupted):
        family.merge(MergeRecipe(), streaming=_until(family, 80))
    left = family.root / ".out.partial/out"
    assert not (family.root / "out").exists()
    assert 0 < len(_done(family)) < 3
    times = {name: (left / name).stat().st_mtime_ns for name in _done(family)}
    found, report = family.merge(MergeRecipe())
    for name, written in times.items():
        assert (family.root / "out" / name).stat().st_mtime_ns == written, "not written again"
    for name, value in whole.items():
        assert same_bits(found[name], value)
    assert report.residual_norm == pytest.approx(expected.residual_norm)
    assert report.lost_share == expected.lost_share
    assert not list(family.root.rglob(".*"))


@pytest.mark.parametrize("change", ["alpha", "recipe", "target", "instruct"])
def test_other_work_does_not_go_on_with_it(family: Family, change: str) -> None:
    with pytest.raises(_Interrupted):
        family.merge(MergeRecipe(), streaming=_until(family, 80))
    for shard in (family.root / ".out.partial/out").glob("*.safetensors"):
        shard.write_bytes(bytes(shard.stat().st_size))  # what must not be taken over
    if change in ("target", "instruct"):
        name = "cpt" if change == "target" else change
        path = next((family.root / name).glob("*.safetensors"))
        os.utime(path, ns=(1, 1))
    recipe = MergeRecipe(scales={"mlp": 0.5}) if change == "recipe" else MergeRecipe()
    found, _ = family.merge(recipe, alpha=0.5 if change == "alpha" else 1.0)
    assert found.keys() == family.values["cpt"].keys()
    assert all(bool(value.any()) for value in found.values())


def test_nothing_of_a_call_that_was_killed_is_published_unseen(family: Family) -> None:
    """Whatever it had begun goes: half a tokenizer, half a record, what a newer version made."""
    with pytest.raises(_Interrupted):
        family.merge(MergeRecipe(), streaming=_until(family, 80))
    left = family.root / ".out.partial/out"
    (left / ".config.json.0123456789ab").write_text("{")
    (left / "sub").mkdir()
    (left / "sub/of.txt").write_text("")
    (left / "link").symlink_to("nowhere")
    family.merge(MergeRecipe())
    family.merge(MergeRecipe(), "whole")
    names = [
        sorted(path.name for path in (family.root / out).iterdir()) for out in ("out", "whole")
    ]
    assert names[0] == names[1]


@pytest.mark.parametrize("keep_time", [False, True])
@pytest.mark.parametrize("role", ["cpt", "base", "instruct"])
def test_inputs_that_change_meanwhile_are_not_mixed(
    family: Family, role: str, keep_time: bool
) -> None:
    path = max((family.root / role).glob("*.safetensors"))

    def progress(done: int, total: int, unit: str) -> None:
        stat = path.stat()
        with path.open("r+b") as file:
            file.seek(-2, os.SEEK_END)
            file.write(b"\0\0")
        if keep_time:
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))

    with pytest.raises(ArtifactError, match="changed while they were read") as caught:
        family.merge(MergeRecipe(), streaming=Streaming(progress=progress, threads=1))
    assert caught.value.problems == (str(path),)
    assert sorted(entry.name for entry in family.root.iterdir()) == ["base", "cpt", "instruct"]


def test_a_template_that_comes_meanwhile(family: Family) -> None:
    template = family.root / "instruct" / "chat_template.json"

    def progress(done: int, total: int, unit: str) -> None:
        template.write_text("{}")

    with pytest.raises(ArtifactError, match=r"chat_template\.json"):
        family.merge(MergeRecipe(), streaming=Streaming(progress=progress, threads=1))
    assert not (family.root / "out").exists()


def test_resuming_on_a_disk_that_the_killed_call_had_filled(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it had reserved and not completed is given back before room is asked for."""
    size = sum(path.stat().st_size for path in (family.root / "cpt").glob("*.safetensors"))

    def free(path: Path) -> int:
        return size - sum(file.stat().st_size for file in family.root.glob(".*/out/*.safetensors"))

    monkeypatch.setattr(disk, "free_bytes", free)
    with pytest.raises(_Interrupted):
        family.merge(MergeRecipe(), streaming=_until(family, 80))
    left = family.root / ".out.partial/out"
    begun = {path.name for path in left.glob("*.safetensors")} - {*_done(family)}
    assert begun
    kept = {name: (left / name).stat().st_mtime_ns for name in _done(family)}
    family.merge(MergeRecipe())
    for name, written in kept.items():
        assert (family.root / "out" / name).stat().st_mtime_ns == written, "not written again"


def test_a_disk_that_fills_up_costs_only_the_shard_in_work(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, num_reserved = os.posix_fallocate, [0]

    def reserve(file: int, offset: int, length: int) -> None:
        num_reserved[0] += 1
        if num_reserved[0] == 3:
            while len(_done(family)) < 2:  # they are flushed in the background
                time.sleep(0.01)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(file, offset, length)

    monkeypatch.setattr(os, "posix_fallocate", reserve)
    with pytest.raises(DiskSpaceError):
        family.merge(MergeRecipe())
    left = [path.name for path in (family.root / ".out.partial/out").iterdir()]
    assert sorted(left) == _done(family)
    assert len(left) == 2
    family.merge(MergeRecipe())
    assert num_reserved[0] == 4


def test_a_shard_whose_last_bytes_do_not_reach_the_disk_is_not_recorded(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, num_flushed = OutputFile.flush, [0]

    def flush(file: OutputFile) -> None:
        num_flushed[0] += 1
        if num_flushed[0] == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(file)

    monkeypatch.setattr(OutputFile, "flush", flush)
    with pytest.raises(DiskSpaceError):
        family.merge(MergeRecipe())
    left = [path.name for path in (family.root / ".out.partial/out").iterdir()]
    assert sorted(left) == _done(family)
    assert 1 <= len(left) <= 2, "the third may have been written meanwhile"
    monkeypatch.undo()
    family.merge(MergeRecipe())


def test_outputs_that_belong_together_outlast_a_place_that_is_taken(family: Family) -> None:
    first, second = (family.root / name for name in ("first", "second"))

    def progress(done: int, total: int, unit: str) -> None:
        first.mkdir(exist_ok=True)
        (first / "precious").write_text("x")

    def run(streaming: Streaming) -> None:
        outputs = [Output(1.0, first), Output(0.5, second)]
        merge(family.open("cpt"), family.pair, outputs, streaming=streaming)

    with pytest.raises(ArtifactError, match="first cannot be put into its place"):
        run(Streaming(progress=progress, threads=1))
    assert not second.exists()
    kept = {path.stat().st_ino for path in family.root.glob(".*/out/*.safetensors")}
    assert len(kept) == 6
    (first / "precious").unlink()
    run(DEFAULT_STREAMING)
    written = [path for out in (first, second) for path in out.glob("*.safetensors")]
    assert {path.stat().st_ino for path in written} == kept, "not written again"


def test_an_error_leaves_nothing_and_a_read_only_place_is_refused(family: Family) -> None:
    (family.root / "file").write_text("")
    with pytest.raises(ArtifactError, match="is not a directory"):
        merge(family.open("cpt"), family.pair, [Output(1.0, family.root / "file" / "out")])
    assert not list(family.root.glob(".*"))

"""`cpt-residual` as a user runs it: help, the whole way, a kill and Ctrl-C in the middle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from support.commands import call, environment, run_code
from support.pico_family import fake_model, read_all, real_family, same_bits

HEAVY = ("torch", "transformers", "numba", "numpy", "safetensors", "huggingface_hub", "wandb")
NUM_SHARDS = 4

# Runs the command, and sends itself a signal when it has completed so many shards, or (-1) when
# everything is merged but not yet checked, or (-2) when one output of several is published.
STOPPED = """
import os, signal, sys
from cpt_residual.cli import main
from cpt_residual.weights.io import output_dir as staging
from cpt_residual.weights.merge import verification
after, number = int(sys.argv.pop(1)), getattr(signal, sys.argv.pop(1))
complete, checked, done = staging.OutputFolder.complete, verification.hashed_shards, []
publish = staging.OutputFolder.publish
def stopping(self, shard, sums):
    complete(self, shard, sums)
    done.append(shard)
    if len(done) == after:
        os.kill(os.getpid(), number)
def unchecked(*arguments):
    if after == -1:
        os.kill(os.getpid(), number)
    return checked(*arguments)
def publishing(self):
    publish(self)
    if after == -2:
        os.kill(os.getpid(), number)
staging.OutputFolder.complete, verification.hashed_shards = stopping, unchecked
staging.OutputFolder.publish = publishing
main()
"""


def stopped(after: int, name: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return run_code(STOPPED, str(after), name, *arguments, cwd=cwd)


def with_imports(
    arguments: list[str], *, of: tuple[str, ...], cwd: Path
) -> subprocess.CompletedProcess[str]:
    """Runs the command; the last line that it prints names those of `of` that it has imported."""
    code = (
        "import sys\n"
        "from cpt_residual.cli import main\n"
        f"sys.argv = {['cpt-residual', *arguments]!r}\n"
        "try:\n    main()\n"
        "finally:\n"
        f"    print('heavy:', sorted(set({of!r}) & set(sys.modules)))"
    )
    return run_code(code, cwd=cwd)


def identity(path: Path) -> tuple[int, int]:
    """The same for a file that was renamed and not written again."""
    stat = path.stat()
    return stat.st_ino, stat.st_mtime_ns


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("family")
    real_family(root, model_type="llama", tied=True, dtype=torch.bfloat16)
    return root


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A family of many tensors whose target has four shards."""
    root = tmp_path_factory.mktemp("sharded")
    for seed, name in enumerate(("base", "instruct", "cpt")):
        generator = torch.Generator().manual_seed(seed)
        shapes = {"model.embed_tokens.weight": (288, 32)} | {
            f"model.layers.{layer}.mlp.up_proj.weight": (512, 32) for layer in range(11)
        }
        tensors = {
            key: torch.randn(shape, generator=generator).to(torch.bfloat16)
            for key, shape in shapes.items()
        }
        fake_model(root / name, tensors, num_shards=NUM_SHARDS if name == "cpt" else 1)
    return root


@pytest.mark.parametrize(
    "verb", [None, "compute", "apply", "inspect", "verify", "geometry", "card", "export", "gc"]
)
def test_help_imports_no_heavy_library(verb: str | None, tmp_path: Path) -> None:
    done = with_imports([verb, "--help"] if verb else ["--help"], of=HEAVY, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "heavy: []"
    if verb is None:
        assert "--install-completion" in done.stdout
        assert "apply" in done.stdout


def test_merging_itself_needs_no_torch(sharded: Path, tmp_path: Path) -> None:
    """Importing torch and transformers costs seconds and half of the memory that a merge may use;
    only the check afterwards loads the model."""
    arguments = ["apply", f"--target={sharded / 'cpt'}", "--no-verify", "--out=o"]
    arguments += [f"--{role}={sharded / role}" for role in ("base", "instruct")]
    done = with_imports(arguments, of=("torch", "transformers", "matplotlib"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "heavy: []"


def test_the_whole_way(family: Path, tmp_path: Path) -> None:
    """compute, apply with its check, inspect, verify; the merged model loads and stops."""
    pair = ["--base", str(family / "base"), "--instruct", str(family / "instruct")]
    computed = call("cli", "compute", *pair, "--out", "r", "--json", cwd=tmp_path)
    assert computed.returncode == 0, computed.stderr
    assert json.loads(computed.stdout)["bit_exact"] is True
    target = ["--target", str(family / "base_cpt")]
    applied = call("cli", "apply", *target, "--residual", "r", "--out", "o", "--json", cwd=tmp_path)
    assert applied.returncode == 0, applied.stderr
    document = json.loads(applied.stdout)
    assert document["verified"] is True
    (output,) = document["outputs"]
    assert output["eos_token_ids"] == [4, 1]
    assert "Loading weights" not in applied.stderr, "no bars of other libraries"
    record = json.loads((tmp_path / "o/merge.json").read_text())
    assert record["stops_at"] == [4, 1]
    assert str(tmp_path) not in (tmp_path / "o/README.md").read_text()
    base, instruct, cpt, merged = (
        read_all(folder)
        for folder in (
            family / "base",
            family / "instruct",
            family / "base_cpt",
            tmp_path / "o",
        )
    )
    for name, value in merged.items():
        exact = cpt[name].double() + (instruct[name].double() - base[name].double())
        assert same_bits(value, exact.to(value.dtype)), name
    for arguments in (["verify", "r", *pair], ["verify", "o"]):
        verified = call("cli", *arguments, cwd=tmp_path)
        assert verified.returncode == 0, verified.stderr
    assert "generation stops at 4, 1" in verified.stdout
    shard = tmp_path / "o/model.safetensors"
    raw = bytearray(shard.read_bytes())
    raw[-2] ^= 1
    shard.write_bytes(raw)
    damaged = call("cli", "verify", "o", cwd=tmp_path)
    assert damaged.returncode == 2
    assert "is not what was written" in damaged.stderr
    assert "Traceback" not in damaged.stderr


def test_a_model_that_does_not_load_is_not_published(family: Path, tmp_path: Path) -> None:
    """config.json of the target decides, before anything is written."""
    target = tmp_path / "target"
    target.mkdir()
    for path in (family / "base_cpt").iterdir():
        if path.is_file():
            (target / path.name).write_bytes(path.read_bytes())
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | {"vocab_size": 100}))
    pair = ["--base", str(family / "base"), "--instruct", str(family / "instruct")]
    done = call("cli", "apply", "--target", "target", *pair, "--out", "o", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "the weights in target are not those of its config.json" in done.stderr
    assert "mismatched: model.embed_tokens.weight: (" in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


@pytest.mark.parametrize("after", [1, 3, NUM_SHARDS])
def test_a_killed_apply_resumes_with_the_same_bytes(
    after: int, sharded: Path, tmp_path: Path
) -> None:
    def arguments(out: str) -> list[str]:
        models = [f"--{role}={sharded / role}" for role in ("base", "instruct")]
        options = ["--alpha", "0.5", "--alpha", "1.0", "--no-verify", "--out", out]
        return ["apply", f"--target={sharded / 'cpt'}", *models, *options]

    whole = call("cli", *arguments("whole"), cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    killed = stopped(after, "SIGKILL", *arguments("o"), cwd=tmp_path)
    assert killed.returncode == -signal.SIGKILL
    assert not [path for path in (tmp_path / "o").iterdir() if not path.name.startswith(".")]
    kept = {identity(path) for path in (tmp_path / "o").glob(".*/out/*.safetensors")}
    assert kept, "the shards that were complete are still there"
    resumed = call("cli", *arguments("o"), cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    names = ["alpha_0.5", "alpha_1.0"]
    assert sorted(path.name for path in (tmp_path / "o").iterdir()) == names
    reused = 0
    for name in names:
        left, right = tmp_path / "whole" / name, tmp_path / "o" / name
        files = sorted(path.name for path in left.iterdir())
        assert sorted(path.name for path in right.iterdir()) == files
        changed = [x for x in files if (left / x).read_bytes() != (right / x).read_bytes()]
        assert changed == []
        reused += sum(identity(path) in kept for path in right.glob("*.safetensors"))
    assert reused >= after, "what was complete was not written again"


def test_a_kill_between_two_outputs(sharded: Path, tmp_path: Path) -> None:
    """What has appeared stays and is not written again; the same command makes the rest."""
    models = [f"--{role}={sharded / role}" for role in ("base", "instruct")]
    options = ["--alpha", "0.5", "--alpha", "1.0", "--no-verify", "--out", "o"]
    arguments = ["apply", f"--target={sharded / 'cpt'}", *models, *options]
    killed = stopped(-2, "SIGKILL", *arguments, cwd=tmp_path)
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / "o/alpha_0.5").is_dir()
    assert not (tmp_path / "o/alpha_1.0").exists()
    kept = {identity(path) for path in (tmp_path / "o").rglob("*.safetensors")}
    assert len(kept) == 2 * NUM_SHARDS
    resumed = call("cli", *arguments, cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    names = ["alpha_0.5", "alpha_1.0"]
    assert sorted(path.name for path in (tmp_path / "o").iterdir()) == names
    assert {identity(path) for path in (tmp_path / "o").rglob("*.safetensors")} == kept
    again = call("cli", *arguments, cwd=tmp_path)
    assert again.returncode == 2
    assert "exists and is not an empty directory" in again.stderr


def test_ctrl_c_then_the_same_command(sharded: Path, tmp_path: Path) -> None:
    models = [f"--{role}={sharded / role}" for role in ("base", "instruct")]
    arguments = ["apply", f"--target={sharded / 'cpt'}", *models, "--no-verify", "--out", "o"]
    interrupted = stopped(2, "SIGINT", *arguments, cwd=tmp_path)
    assert interrupted.returncode == 130, interrupted.stderr
    assert "interrupted: run the same command again to resume" in interrupted.stderr
    assert "Traceback" not in interrupted.stderr
    assert not (tmp_path / "o").exists()
    assert call("cli", *arguments, cwd=tmp_path).returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["o"]


@pytest.mark.parametrize("how", ["SIGKILL", "SIGINT"])
def test_a_stop_before_the_check_publishes_nothing(how: str, family: Path, tmp_path: Path) -> None:
    arguments = ["apply", f"--target={family / 'base_cpt'}", "--out", "o"]
    arguments += [f"--{role}={family / role}" for role in ("base", "instruct")]
    ended = stopped(-1, how, *arguments, cwd=tmp_path)
    assert ended.returncode == (130 if how == "SIGINT" else -signal.SIGKILL)
    assert not (tmp_path / "o").exists()
    (left,) = tmp_path.glob(".*/out/*.safetensors")
    merged = identity(left)
    done = call("cli", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["o"]
    assert identity(tmp_path / "o/model.safetensors") == merged, "it was only checked"
    assert not list((tmp_path / "o").glob(".*"))


def test_two_at_once_on_one_output(sharded: Path, tmp_path: Path) -> None:
    """The second is refused by the first's name, and the first is not disturbed."""
    models = [f"--{role}={sharded / role}" for role in ("base", "instruct")]
    arguments = ["apply", f"--target={sharded / 'cpt'}", *models, "--no-verify", "--out"]
    assert call("cli", *arguments, "expected", cwd=tmp_path).returncode == 0
    first = subprocess.Popen(
        [sys.executable, "-c", STOPPED, "2", "SIGSTOP", *arguments, "o"],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        os.waitpid(first.pid, os.WUNTRACED)
        second = call("cli", *arguments, "o", "--alpha", "0.5", cwd=tmp_path)
        assert second.returncode == 2
        assert f"built right now by process {first.pid} on" in second.stderr
        assert "Traceback" not in second.stderr
    finally:
        first.send_signal(signal.SIGCONT)
    assert first.wait(timeout=280) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["expected", "o"]
    for path in (tmp_path / "expected").glob("*.safetensors"):
        assert (tmp_path / "o" / path.name).read_bytes() == path.read_bytes()


def test_what_was_left_of_other_inputs_is_not_used(family: Path, tmp_path: Path) -> None:
    pair = [f"--{role}={family / role}" for role in ("base", "instruct")]
    arguments = ["apply", f"--target={family / 'base_cpt'}", *pair, "--out", "o"]
    stopped(-1, "SIGKILL", *arguments, "--alpha", "0.5", cwd=tmp_path)
    done = call("cli", *arguments, "--alpha", "0", "--no-verify", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    name = "model.safetensors"
    assert (tmp_path / "o" / name).read_bytes() == (family / "base_cpt" / name).read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["o"]


def test_a_disk_that_is_really_full(sharded: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    size = 200_000
    mounted = (
        os.geteuid() == 0
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(small)],
            capture_output=True,
            check=False,
        ).returncode
    )
    if not mounted:
        pytest.skip("a small file system cannot be mounted here")
    try:
        models = [f"--{role}={sharded / role}" for role in ("base", "instruct")]
        arguments = ["apply", f"--target={sharded / 'cpt'}", *models, "--no-verify"]
        done = call("cli", *arguments, "--out", "small/o", cwd=tmp_path)
        assert done.returncode == 2
        assert "not enough disk space" in done.stderr
        assert list(small.iterdir()) == []
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_a_command_that_does_not_exist(tmp_path: Path) -> None:
    done = call("cli", "aply", cwd=tmp_path)
    assert done.returncode == 2
    assert "apply" in done.stderr

"""inspect, verify, geometry, card, export."""

from __future__ import annotations

import json
from pathlib import Path

from support.cli_family import APPLY, NUM_PARAMETERS, PAIR, Run, weights_of


def test_inspect_tells_what_things_are(family: Path, run: Run) -> None:
    run("compute", *PAIR, "--out", "r")
    run(*APPLY, "--out", "o")
    kinds = {name: run("inspect", name, "--json").document for name in ("r", "o", "cpt")}
    assert {name: found["kind"] for name, found in kinds.items()} == {
        "r": "residual",
        "o": "merged model",
        "cpt": "model",
    }
    assert {found["num_parameters"] for found in kinds.values()} == {NUM_PARAMETERS}
    assert kinds["r"]["dtypes"] == {"F32": 5}
    assert kinds["cpt"]["dtypes"] == {"BF16": 5}
    assert len(kinds["cpt"]["shards"]) == 3
    assert kinds["r"]["facts"]["bit_exact"] is True
    assert kinds["o"]["facts"]["alpha"] == 1.0
    assert kinds["o"]["eos_token_ids"] == [1]
    told = run("inspect", "r").stdout
    assert "bit exact" in told
    assert "yes" in told
    nothing = run("inspect", "nowhere")
    assert nothing.status == 2
    assert "neither a residual nor a model" in nothing.stderr


def test_verify_rebuilds_instruct_and_finds_an_edited_byte(family: Path, run: Run) -> None:
    run("compute", *PAIR, "--out", "r")
    shown = run("verify", "r", *PAIR)
    assert shown.status == 0, shown.stderr
    assert "base + residual is instruct bit for bit" in shown.stdout
    (shard,) = (family / "r").glob("*.safetensors")
    raw = bytearray(shard.read_bytes())
    raw[-1] ^= 0x40  # an exponent bit of the last element
    shard.write_bytes(raw)
    found = run("verify", "r")
    assert found.status == 2
    assert "is not what was written" in found.stderr
    assert "recorded" in found.stderr


def test_verify_knows_the_models_of_a_residual(family: Path, run: Run) -> None:
    run("compute", *PAIR, "--out", "r")
    done = run("verify", "r", "--base", "cpt")
    assert done.status == 2
    assert "base: these are not the weights that the residual was made from" in done.stderr
    assert done.stdout == ""


def test_verify_wants_one_thing(family: Path, run: Run) -> None:
    for arguments in ([], ["r", "--run", "x"]):
        done = run("verify", *arguments)
        assert done.status == 2
        assert "It is not clear what to verify" in done.stderr
    done = run("verify", "cpt", "--base", "base")
    assert done.status == 2
    assert "is not a residual" in done.stderr


def test_geometry_writes_its_report(family: Path, run: Run) -> None:
    done = run("geometry", *PAIR, "--base-cpt", "cpt", "--out", "g", "--json")
    assert done.status == 0, done.stderr
    assert json.loads((family / "g/geometry.json").read_text()) == done.document
    assert done.document["total"]["num_parameters"] == NUM_PARAMETERS
    assert (family / "g/geometry_heatmaps.png").stat().st_size > 1000
    told = run("geometry", *PAIR, "--base-cpt", "cpt", "--instruct-cpt", "instruct", "--out", "g")
    assert told.status == 0, told.stderr
    assert "whole model" in told.stdout
    assert "attention" in told.stdout


def test_a_card_is_made_again_from_the_record(family: Path, run: Run) -> None:
    run(*APPLY, "--out", "o")
    card = (family / "o/README.md").read_text()
    assert run("card", "o").stdout == card
    assert run("card", "o", "--out", "cards/o.md").status == 0
    assert (family / "cards/o.md").read_text() == card
    assert str(family) not in card
    assert str(family) not in (family / "o/merge.json").read_text()
    without = run("card", "cpt")
    assert without.status == 2
    assert "has no merge.json" in without.stderr


def test_export_for_other_tools(family: Path, run: Run) -> None:
    run("compute", *PAIR, "--out", "r")
    exported = run("export", "--to", "residuals", "--residual", "r", "--out", "p", "--json")
    assert exported.status == 0, exported.stderr
    assert exported.document["bit_exact"] is True
    looked = run("inspect", "p", "--json").document
    assert (looked["kind"], looked["num_parameters"]) == ("residuals package", NUM_PARAMETERS)
    assert looked["facts"]["instruct_model_name"] == "instruct"
    run("apply", "--target", "cpt", "--residual", "p", "--no-verify", "--out", "from_package")
    run(*APPLY, "--out", "direct")
    assert weights_of(family / "from_package") == weights_of(family / "direct")
    written = run("export", "--to", "mergekit", "--target", "cpt", *PAIR, "--out", "merge.yaml")
    assert written.status == 0, written.stderr
    assert "merge_method: task_arithmetic" in (family / "merge.yaml").read_text()
    for kind in ("residuals", "mergekit"):
        lacking = run("export", "--to", kind, "--out", "x")
        assert lacking.status == 2
        assert f"--to {kind} needs" in lacking.stderr

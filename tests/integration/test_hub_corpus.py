"""Hub data sets through the real client libraries, against a hub on this machine."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.hub_server import hub_server
from support.text_files import write_rows

OLD, NEW, GONE = "0" * 40, "1" * 40, "2" * 40
CARD = b"""---
configs:
- config_name: en
  data_files:
  - {split: train, path: en/*.parquet}
---
"""
READ = """
import json, sys
from cpt_residual.config.corpora import HubCorpus
from cpt_residual.data.readers.hub import HubReader
from cpt_residual.data.readers.base import Fields
from cpt_residual.errors import CorpusError
for line in sys.stdin:
    fields = {"kind": "hub", "max_characters": 1000} | json.loads(line)
    try:
        corpus = HubCorpus.model_validate(fields)
        given = [record.text for record in HubReader(corpus, fields=Fields(corpus.text_field))]
        print(json.dumps({"texts": given}), flush=True)
    except CorpusError as error:
        print(json.dumps({"what": error.what, "problems": error.problems, "remedy": error.remedy}),
              flush=True)
"""


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    def files(version: str) -> dict[str, bytes]:
        shards = {}
        for number in range(2):
            path = write_rows(tmp_path / f"{version}{number}.parquet", [f"{version} {number}", "x"])
            shards[f"en/{number}.parquet"] = path.read_bytes()
        return {"README.md": CARD, **shards}

    lines = {"a.jsonl.gz": gzip.compress(b'{"text": "one"}\n{"text": "two"}\n')}
    repos = {"org/data": {OLD: files("old"), NEW: files("new")}, "org/lines": {OLD: lines}}
    with hub_server(repos) as url:
        yield url


def environment(address: str, home: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return kept | {"HF_ENDPOINT": address, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1"}


def ask(address: str, home: Path, *corpora: dict[str, object]) -> list[dict[str, object]]:
    """Read these corpora in one new process."""
    done = subprocess.run(
        [sys.executable, "-c", READ],
        input="".join(json.dumps(corpus) + "\n" for corpus in corpora),
        capture_output=True,
        text=True,
        check=True,
        env=environment(address, home),
        cwd=home.parent,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_streaming_pins_and_refusals(address: str, tmp_path: Path) -> None:
    # A folder of the same name must not be taken for the data set.
    write_rows(tmp_path / "org/data/train.jsonl", ["local"])
    asked: list[dict[str, object]] = [
        {"repo": "org/data", "config": "en", "revision": OLD},
        {"repo": "org/data", "config": "en", "revision": NEW},
        {"repo": "org/lines", "revision": OLD},
        {"repo": "org/data", "config": "en", "revision": GONE},
        {"repo": "org/none", "revision": OLD},
        {"repo": "org/data", "config": "de", "revision": OLD},
        {"repo": "org/data", "config": "en", "revision": OLD, "split": "test"},
    ]
    old, new, packed, gone, none, config, split = ask(address, tmp_path / "home", *asked)
    assert old == {"texts": ["old 0", "x", "old 1", "x"]}
    assert new == {"texts": ["new 0", "x", "new 1", "x"]}
    assert packed == {"texts": ["one", "two"]}
    assert "changed since it was pinned" in str(gone["remedy"])
    assert GONE in str(gone["problems"])
    for refused in (none, config, split):
        assert "cannot be read" in str(refused["what"])
        assert "Check repo, config, split and revision" in str(refused["remedy"])


def test_prefetch_builds_what_needs_the_network_and_then_nothing_does(
    address: str, tmp_path: Path
) -> None:
    corpus = f"{{kind: hub, repo: org/lines, revision: '{OLD}', max_characters: 99, part: null}}"
    (tmp_path / "conf/experiment").mkdir(parents=True)
    (tmp_path / "conf/experiment/mine.yaml").write_text(
        "# @package _global_\ndefaults: [smoke, _self_]\nname: mine\n"
        f"corpora:\n  new_domain: {corpus}\n"
        "suites:\n  world: {probes: [instruction_following]}\n"
        "evaluation: {suites: [world]}\ngoals: null\n"
    )

    def run(**more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "cpt_residual.run", "+experiment=mine", "--prefetch"]
        options = ["--config-dir", str(tmp_path / "conf"), f"paths.root={tmp_path / 'outputs'}"]
        return subprocess.run(
            command + options,
            capture_output=True,
            text=True,
            check=False,
            env=environment(address, tmp_path / "home") | more,
            cwd=tmp_path,
        )

    offline = run(HF_HUB_OFFLINE="1")
    assert offline.returncode == 2, offline.stdout + offline.stderr
    assert "--prefetch" in offline.stdout
    fetched = run()
    assert fetched.returncode == 0, fetched.stdout + fetched.stderr
    assert "prefetched: " in fetched.stdout
    store = tmp_path / "outputs/store"
    assert [path.name for path in store.iterdir() if not path.name.startswith(".")] == ["corpus"]
    (documents,) = store.glob("corpus/*/documents.jsonl")
    assert documents.read_text() == '{"text": "one"}\n{"text": "two"}\n'
    again = run(HF_HUB_OFFLINE="1")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "1 ready, 0 to build" in again.stdout

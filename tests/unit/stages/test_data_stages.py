"""World, corpus and pack as stages: recipes, costs, and what they publish."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cpt_residual.config.corpora import HubCorpus, LocalCorpus
from cpt_residual.config.filters import Contamination, Filters
from cpt_residual.config.packs import Pack
from cpt_residual.core.hashing import file_sha256
from cpt_residual.core.stage import ArtifactRef, Metrics, RunContext, Stage
from cpt_residual.data.packing.pack_format import open_pack
from cpt_residual.data.readers.files import resolve_files
from cpt_residual.errors import ConfigError, CorpusError
from cpt_residual.modeling.chat import TINY_CHAT_TEMPLATE
from cpt_residual.modeling.encoding_limits import MAX_UNDIVIDED_CHARACTERS
from cpt_residual.stages.corpus import Corpus
from cpt_residual.stages.inputs import CorpusInput
from cpt_residual.stages.pack import PackStage
from cpt_residual.stages.references import References
from cpt_residual.stages.world import World
from support.staged import contents
from support.stages import SMALL_WORLD
from support.tiny_tokenizer import save, tiny_tokenizer


def build(stage: Stage, work: Path, inputs: Mapping[str, ArtifactRef] | None = None) -> Metrics:
    (work / "out").mkdir(parents=True, exist_ok=True)
    return stage.build(inputs or {}, work, RunContext(run_dir=work))


def ref(stage: Stage, path: Path) -> ArtifactRef:
    return ArtifactRef(stage.name, stage.node, "f", "c", path, {})


def local(folder: Path, *, heldout: int = 0, field: str = "text") -> LocalCorpus:
    return LocalCorpus(
        kind="local", files=[str(folder / "*.jsonl")], text_field=field, heldout_documents=heldout
    )


def corpus_stage(folder: Path, *, heldout: int = 0, seed: int = 0) -> Corpus:
    corpus = local(folder, heldout=heldout)
    return Corpus("mine", corpus, pins(corpus), seed)


def pins(corpus: LocalCorpus) -> dict[str, str]:
    return {str(path): file_sha256(path) for path in resolve_files(corpus.files)}


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    lines = [json.dumps({"text": f"the city of Anna {number}", "id": 1}) for number in range(30)]
    (folder / "a.jsonl").write_text("\n".join(lines))
    return folder


class TestWorld:
    def test_files_and_bytes(self, tmp_path: Path) -> None:
        world = World(SMALL_WORLD, seed=3)
        metrics = build(world, tmp_path / "a")
        build(world, tmp_path / "b")
        published = contents(tmp_path / "a" / "out")
        assert published == contents(tmp_path / "b" / "out")
        assert published["general.jsonl"].count(b"\n") == metrics["num_general"] == 40
        assert published["donor_instructions.jsonl"].count(b"\n") == 50
        assert metrics["num_probes_new_facts"] == published["probes/new_facts.jsonl"].count(b"\n")

    def test_recipe_and_cost(self) -> None:
        world = World(SMALL_WORLD, seed=3)
        recipes = {
            world.recipe().model_dump_json(),
            World(SMALL_WORLD, seed=4).recipe().model_dump_json(),
        }
        for name in type(SMALL_WORLD).model_fields:
            changed = SMALL_WORLD.model_copy(update={name: getattr(SMALL_WORLD, name) + 1})
            recipes.add(World(changed, seed=3).recipe().model_dump_json())
        assert len(recipes) == 2 + len(type(SMALL_WORLD).model_fields)
        assert world.node == "world"
        assert world.cost().disk_bytes > 0 < world.cost().seconds
        assert dict(world.inputs()) == {}


class TestCorpus:
    def test_local_files_are_published_in_our_form(self, texts: Path, tmp_path: Path) -> None:
        metrics = build(corpus_stage(texts, heldout=4), tmp_path / "w")
        published = contents(tmp_path / "w" / "out")
        assert sorted(published) == ["documents.jsonl", "heldout.jsonl", "ledger.json"]
        assert published["documents.jsonl"].startswith(b'{"text": "the city of Anna ')
        assert (metrics["documents"], metrics["heldout_documents"]) == (26, 4)
        ledger = json.loads(published["ledger.json"])
        assert {name: ledger[name] for name in metrics} == metrics
        assert [(file["kind"], file["documents"]) for file in ledger["files"]] == [(".jsonl", 30)]

    def test_progress_counts_characters(self, texts: Path, tmp_path: Path) -> None:
        seen: list[tuple[int, int, str]] = []
        context = RunContext(run_dir=tmp_path, progress=lambda *report: seen.append(report))
        (tmp_path / "w" / "out").mkdir(parents=True)
        metrics = corpus_stage(texts).build({}, tmp_path / "w", context)
        assert seen[-1] == (metrics["characters"], metrics["characters"], "characters")

    def test_the_recipe_is_content_not_place(self, texts: Path, tmp_path: Path) -> None:
        before = corpus_stage(texts).recipe()
        moved = texts.rename(tmp_path / "elsewhere")
        (moved / "a.jsonl").rename(moved / "z.jsonl")
        assert corpus_stage(moved).recipe() == before
        assert str(tmp_path) not in before.model_dump_json()
        (moved / "z.jsonl").write_text('{"text": "other"}\n')
        assert corpus_stage(moved).recipe() != before

    def test_the_seed_matters_only_for_the_split(self, texts: Path) -> None:
        assert corpus_stage(texts, seed=1).recipe() == corpus_stage(texts, seed=2).recipe()
        one, two = (corpus_stage(texts, heldout=3, seed=seed).recipe() for seed in (1, 2))
        assert one != two

    def test_a_file_that_changed_after_planning(self, texts: Path, tmp_path: Path) -> None:
        stage = corpus_stage(texts)
        (texts / "a.jsonl").write_text('{"text": "other"}\n')
        with pytest.raises(CorpusError, match="changed after they were pinned"):
            build(stage, tmp_path / "w")

    def test_filters_are_applied_and_recorded(self, tmp_path: Path) -> None:
        rows = ["one  two", "one two", "", "x", "three four five"]
        lines = [json.dumps({"text": text, "date": "2025-01-02"}) for text in rows]
        (tmp_path / "a.jsonl").write_text("\n".join(lines))
        corpus = LocalCorpus.model_validate(
            {
                "kind": "local",
                "files": [str(tmp_path)],
                "bad_lines": "skip",
                "filters": {
                    "date": {"not_before": "2025-01-01"},
                    "length": {"min_characters": 2},
                    "exact_dedup": {},
                },
            }
        )
        stage = Corpus("mine", corpus, pins(corpus), 0)
        metrics = build(stage, tmp_path / "w")
        ledger = json.loads((tmp_path / "w/out/ledger.json").read_text())
        assert (metrics["documents_read"], metrics["bad_rows_skipped"]) == (4, 1)
        assert [each["name"] for each in ledger["passes"]] == ["date", "length", "exact_dedup"]
        dropped = [metrics[f"dropped/{name}"] for name in ("date", "length", "exact_dedup")]
        assert dropped == [0, 1, 1]
        assert metrics["documents"] == 2
        assert ledger["first_bad_rows"] == ["file 1 line 3: field 'text' is empty"]

    def test_the_recipe_moves_with_every_choice(self, texts: Path) -> None:
        changes: list[dict[str, object]] = [
            {},
            {"text_field": "id"},
            {"bad_lines": "skip"},
            {"heldout_documents": 1},
            {"filters": {"length": {"min_characters": 1}}},
            {"filters": {"length": {"min_characters": 2}}},
            {"filters": {"near_dedup": {}}},
        ]
        corpora = [
            LocalCorpus.model_validate({"kind": "local", "files": [str(texts)]} | change)
            for change in changes
        ]
        recipes = [Corpus("mine", each, pins(each), 0).recipe() for each in corpora]
        assert len({recipe.model_dump_json() for recipe in recipes}) == len(changes)
        assert [dict(each.filters.libraries) for each in recipes[:-1]] == [{}] * len(recipes[:-1])
        assert set(recipes[-1].filters.libraries) == {"rensa", "unicode"}
        pinned = corpora[0].model_copy(update={"content_sha256": "0" * 64})
        assert Corpus("mine", pinned, pins(pinned), 0).recipe() == recipes[0]

    def test_contamination_reads_the_references(self, texts: Path, tmp_path: Path) -> None:
        corpus = local(texts).model_copy(
            update={"filters": Filters(contamination=Contamination(action="drop", min_words=3))}
        )
        references = References({}, None)
        stage = Corpus("mine", corpus, pins(corpus), 0, references)
        assert dict(stage.inputs()) == {"references": references}
        given = tmp_path / "references"
        given.mkdir()
        line = {"task": "quiz", "text": "the city of Anna 7"}
        (given / "references.jsonl").write_text(json.dumps(line) + "\n")
        metrics = build(stage, tmp_path / "w", {"references": ref(references, given)})
        assert metrics["contaminated/quiz"] == metrics["dropped/contamination"] == 1
        assert metrics["documents"] == 29

    def test_cost_of_files_and_of_the_hub(self, texts: Path) -> None:
        assert corpus_stage(texts).cost().disk_bytes == (texts / "a.jsonl").stat().st_size
        assert Corpus("hub", hub(Path("x/y")), {}, 0).cost().disk_bytes == 1000


def hub(repo: Path) -> HubCorpus:
    return HubCorpus(kind="hub", repo=str(repo), revision="a" * 40, max_characters=1000)


@dataclasses.dataclass(frozen=True)
class Packing:
    """A world, a base model with tokenizer and chat folder, and a pack of three sources."""

    stage: PackStage
    inputs: dict[str, ArtifactRef]


def pack_config(**changes: Any) -> Pack:
    sources = [
        {"corpus": "general", "share": 0.4},
        {"corpus": "new", "share": 0.4},
        {"corpus": "chat", "share": 0.2, "format": "chat"},
    ]
    fields: dict[str, Any] = {
        "tokenizer": "base",
        "sequence_length": 256,
        "token_budget": 5000,
        "sources": sources,
        "repeat": True,
    }
    return Pack.model_validate(fields | changes)


@pytest.fixture
def packing(tmp_path: Path) -> Packing:
    world = World(SMALL_WORLD, seed=0)
    build(world, tmp_path / "world")
    model = save(tiny_tokenizer(), tmp_path / "model")
    (model / "chat").mkdir()
    (model / "chat" / "chat_template.jinja").write_text(TINY_CHAT_TEMPLATE)
    names = ("general.jsonl", "new_domain.jsonl", "instructions.jsonl")
    given = tuple(CorpusInput(world, name) for name in names)
    # Any stage can stand for the model here: only its artifact's directory is read.
    stage = PackStage("mixed", pack_config(), world, world, given, seed=0)
    world_ref = ref(world, tmp_path / "world" / "out")
    inputs = {f"source_{number}": world_ref for number in range(3)}
    inputs |= {"tokenizer": ref(world, model), "template": ref(world, model)}
    return Packing(stage, inputs)


class TestPack:
    def test_all_of_it(self, packing: Packing, tmp_path: Path) -> None:
        assert set(packing.stage.inputs()) == set(packing.inputs)
        metrics = build(packing.stage, tmp_path / "p", packing.inputs)
        view = open_pack(tmp_path / "p" / "out")
        assert metrics["tokens"] == view.ledger.tokens == 5000
        assert metrics["num_rows"] == len(view)
        shares = {source.corpus: source.tokens / 5000 for source in view.ledger.sources}
        assert shares == pytest.approx({"general": 0.4, "new": 0.4, "chat": 0.2}, abs=256 / 5000)
        chat = view.ledger.sources[2]
        assert chat.eos_tokens == 0
        assert chat.loss_tokens < chat.masked_tokens + chat.loss_tokens == chat.tokens
        learnt = np.array(view.ids)[(np.array(view.flags) & 2) != 0]
        assert not np.isin([0, 2, 3], learnt).any(), "padding and prompts are never learnt"

    def test_the_recipe_moves_with_what_changes_the_bytes(self, packing: Packing) -> None:
        stage = packing.stage
        changes: list[dict[str, Any]] = [
            {"sequence_length": 192},
            {"token_budget": 5001},
            {"repeat": False},
        ]
        recipes = [dataclasses.replace(stage, pack=pack_config(**change)) for change in changes]
        recipes += [dataclasses.replace(stage, seed=1)]
        assert len({one.recipe().model_dump_json() for one in [stage, *recipes]}) == 5
        renamed = dataclasses.replace(stage, key="other", pack=pack_config(tokenizer="other"))
        assert renamed.recipe() == stage.recipe()

    def test_cost(self, packing: Packing) -> None:
        cost = packing.stage.cost()
        assert cost.tokens == 5000
        assert 25_000 <= cost.disk_bytes <= 30_000
        assert packing.stage.resources().memory_bytes == 500 * 2**20

    def test_memory_allows_for_long_documents_of_users(self, packing: Packing) -> None:
        """Such a one is encoded at once where the tokenizer has no place to cut it."""
        corpus = CorpusInput(Corpus("hub", hub(Path("x/y")), {}, 0), "documents.jsonl")
        given = (*packing.stage.sources[:2], corpus)
        mixed = dataclasses.replace(packing.stage, sources=given)
        more = mixed.resources().memory_bytes - packing.stage.resources().memory_bytes
        assert more == 400 * MAX_UNDIVIDED_CHARACTERS

    def test_one_threshold_says_who_encodes(self, packing: Packing, tmp_path: Path) -> None:
        build(packing.stage, tmp_path / "small", packing.inputs)
        assert not (tmp_path / "small" / "tokens").exists()
        assert packing.stage.cost().scratch_bytes == 0
        large = dataclasses.replace(packing.stage, pack=pack_config(token_budget=4_000_000))
        assert large.cost().scratch_bytes > 0

    def test_phases_alone_say_the_shares(self, packing: Packing) -> None:
        names = ("general", "new", "chat")
        phases = [
            {"share": share, "shares": dict(zip(names, shares, strict=True))}
            for share, shares in ((0.7, (0.5, 0.3, 0.2)), (0.3, (0.1, 0.7, 0.2)))
        ]
        sources = [
            {"corpus": name, "format": "chat" if name == "chat" else "text"} for name in names
        ]
        stage = packing.stage
        phased = dataclasses.replace(stage, pack=pack_config(sources=sources, phases=phases))
        assert [source.share for source in phased.recipe().sources] == [None] * 3
        assert [phase.share for phase in phased.recipe().phases] == [0.7, 0.3]
        assert [source.share for source in stage.recipe().sources] == [0.4, 0.4, 0.2]

    def test_text_alone_needs_no_template(self, packing: Packing) -> None:
        given = packing.stage.sources[:1]
        text = pack_config(sources=[{"corpus": "general"}])
        stage = dataclasses.replace(packing.stage, pack=text, sources=given, template=None)
        assert set(stage.inputs()) == {"tokenizer", "source_0"}

    def test_chat_without_a_template(self, packing: Packing) -> None:
        stage = dataclasses.replace(packing.stage, template=None)
        with pytest.raises(ConfigError, match="no chat template is named"):
            stage.inputs()

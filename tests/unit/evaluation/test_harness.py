"""Own suites through lm-eval: metric names, stop reasons, likelihoods, isolation, determinism."""

from __future__ import annotations

import logging
import math
import random
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from cpt_residual.config.schema import Suite
from cpt_residual.data.cloze.questions import Question
from cpt_residual.errors import CompatibilityError, EvaluationError
from cpt_residual.evaluation.harness import EvaluationInputs, EvaluationSettings, evaluate
from cpt_residual.evaluation.model import RecordingLM
from cpt_residual.evaluation.results import (
    EvaluationResult,
    read_results,
    read_samples,
    write_evaluation,
)
from cpt_residual.modeling.loading import load_causal_lm
from cpt_residual.modeling.tokenizer import backend_of, load_tokenizer
from cpt_residual.suites.cloze import ClozeSuite
from cpt_residual.suites.heldout import HeldoutSuite
from cpt_residual.suites.world import WorldSuite
from support.tiny_tokenizer import tiny_tokenizer

Run = Callable[..., EvaluationResult]

TEXTS = ("the a of i is q", "naïve <|end|> b", "x", "the b of j is r " * 30)
WORLD = WorldSuite(kind="world", probes=["instruction_following", "new_facts"], max_new_tokens=6)
HELDOUT = HeldoutSuite(kind="heldout", corpora=["general"], max_documents=10)
LEVELS = [
    f"{level}_level_{kind}_acc{suffix}"
    for suffix in ("", "_open")
    for kind in ("strict", "loose")
    for level in ("prompt", "inst")
]


@pytest.fixture
def run(models: Mapping[str, Path], inputs: EvaluationInputs, settings: EvaluationSettings) -> Run:
    def call(
        model: str, suites: Mapping[str, Suite] | None = None, **changes: object
    ) -> EvaluationResult:
        return evaluate(
            models[model],
            suites or {"world": WORLD},
            variant=model,
            inputs=inputs,
            settings=replace(settings, **changes),  # pyright: ignore[reportArgumentType]
        )

    return call


def test_every_metric_is_there_with_the_number_of_prompts_behind_it(run: Run) -> None:
    rows = {(row.task, row.metric): row for row in run("closes").rows}
    following = {metric for task, metric in rows if task == "instruction_following"}
    types = {"type/upper", "type/lower", "type/upper+one_word"}
    assert following == {*LEVELS, "closed_share", "obeyed_and_right", *types}
    assert {metric for task, metric in rows if task == "new_facts"} == {"accuracy", "closed_share"}
    assert all(rows["instruction_following", metric].n == 3 for metric in following - types)
    assert all(rows["instruction_following", kind].n == 1 for kind in types)


def test_scores_of_a_model_that_always_answers_a(run: Run) -> None:
    result = run("closes")
    value = {row.metric: row.value for row in result.rows if row.task == "instruction_following"}
    assert value["prompt_level_strict_acc"] == pytest.approx(2 / 3)
    assert value["inst_level_strict_acc"] == pytest.approx(3 / 4)
    assert (value["type/upper"], value["type/lower"], value["closed_share"]) == (1, 0, 1)
    assert value["obeyed_and_right"] == pytest.approx(2 / 3)
    assert result.value("new_facts", "accuracy") == 0.5
    errors = {row.metric: row.stderr for row in result.rows if row.task == "instruction_following"}
    assert errors["prompt_level_strict_acc"] == pytest.approx(1 / 3)
    assert errors["inst_level_strict_acc"] > 0
    assert errors["type/upper"] is None


@pytest.mark.parametrize(
    ("model", "reason", "num_tokens", "response"),
    [
        ("closes", "<|end|>", 2, "A"),
        ("separates", "<|endoftext|>", 2, "A"),
        ("runs_on", "length", 6, "AAAAAA"),
    ],
)
def test_stop_reason_of_every_response(
    run: Run, model: str, reason: str, num_tokens: int, response: str
) -> None:
    samples = run(model).samples
    assert {(s.stop_reason, s.num_tokens, s.response) for s in samples} == {
        (reason, num_tokens, response)
    }


def test_an_open_turn_counts_only_where_closing_is_not_asked_for(run: Run) -> None:
    result = run("separates")
    assert result.value("instruction_following", "closed_share") == 0
    assert result.value("instruction_following", "prompt_level_strict_acc") == 0
    assert result.value("instruction_following", "obeyed_and_right") == 0
    assert result.value("instruction_following", "prompt_level_strict_acc_open") > 0.6
    assert result.value("instruction_following", "inst_level_loose_acc_open") == 0.75
    assert result.value("new_facts", "accuracy") == 0.5


def test_two_models_in_one_process_never_share_an_answer(run: Run) -> None:
    first, other, again = run("random"), run("random_2"), run("random")
    assert [s.response for s in first.samples] != [s.response for s in other.samples]
    assert first == again


def test_batch_size_changes_no_answer(run: Run) -> None:
    suites = {"world": WORLD, "heldout": HELDOUT}
    alone, together = run("random", suites, batch_size=1), run("random", suites, batch_size=64)
    for a, b in zip(alone.samples, together.samples, strict=True):
        assert (a.doc_id, a.response, a.stop_reason) == (b.doc_id, b.response, b.stop_reason)
    for a, b in zip(alone.rows, together.rows, strict=True):
        assert a.value == pytest.approx(b.value, rel=1e-5)


def test_bits_per_byte_equals_a_direct_computation(
    run: Run, models: Mapping[str, Path], world: Path
) -> None:
    result = run("random", {"heldout": HELDOUT})
    model = load_causal_lm(models["random"], dtype=torch.float32)
    tokenizer = backend_of(load_tokenizer(models["random"]), specials_as_text=True)
    nats, num_bytes, num_tokens = 0.0, 0, 0
    for sample, text in zip(
        result.samples,
        ["the a of i is q", "naïve <|end|> b", "x", "the b of j is r " * 30],
        strict=True,
    ):
        ids = tokenizer.encode(text).ids
        own = 0.0
        # one window per 128 scored tokens, each with as much context as the model can take
        for start in range(1, len(ids), 128):
            end = min(start + 128, len(ids))
            window = torch.tensor([ids[max(0, end - 129) : end]])
            with torch.inference_mode():
                logits = model(window[:, :-1]).logits.log_softmax(-1)[0]
            scores = logits.gather(1, window[0, 1:, None])[:, 0]
            own -= float(scores[-(end - start) :].sum())
        assert sample.metrics["bits_per_byte"][0] == pytest.approx(-own, rel=1e-4)
        nats, num_tokens = nats + own, num_tokens + len(ids) - 1
        num_bytes += len(text.encode()) - len(tokenizer.decode(ids[:1]).encode())
    assert result.value("heldout_general", "bits_per_byte") == pytest.approx(
        nats / num_bytes / math.log(2), rel=1e-5
    )
    assert result.value("heldout_general", "token_perplexity") == pytest.approx(
        math.exp(nats / num_tokens), rel=1e-5
    )
    facts = result.facts["tasks"]["heldout_general"]
    assert (facts["num_bytes"], facts["num_tokens"]) == (num_bytes, num_tokens)
    assert len(tokenizer.encode("the b of j is r " * 30).ids) > 129


def test_files_are_byte_equal_and_can_be_read_back(run: Run, tmp_path: Path) -> None:
    for name in ("a", "b"):
        random.seed(name)
        torch.manual_seed(ord(name))
        suites = {"world": WORLD, "heldout": HELDOUT}
        write_evaluation(run("random", suites, scratch=tmp_path / name), tmp_path / "out" / name)
    for file in ("results.json", "samples.jsonl", "evaluation.json"):
        content = (tmp_path / "out" / "a" / file).read_bytes()
        assert content == (tmp_path / "out" / "b" / file).read_bytes()
        assert str(tmp_path).encode() not in content
    result = run("random", {"world": WORLD, "heldout": HELDOUT})
    assert read_results(tmp_path / "out" / "a") == result.rows
    assert read_samples(tmp_path / "out" / "a") == result.samples
    assert {s.task for s in read_samples(tmp_path / "out" / "a", tasks=["new_facts"])} == {
        "new_facts"
    }


def test_the_facts_say_where_the_numbers_come_from(run: Run) -> None:
    facts = run("closes").facts
    assert facts["turn_end"] == "<|end|>"
    assert set(facts["stop_tokens"]) == {"<|end|>", "<|endoftext|>"}
    assert len(facts["chat_template_sha256"]) == len(facts["token_map_sha256"]) == 64
    assert facts["lm_eval"].startswith("0.")
    task = facts["tasks"]["instruction_following"]
    assert len(task["scorer_sha256"]) == 64
    assert (task["num_documents"], task["num_fewshot"], task["chat"]) == (3, 0, True)


def test_the_models_own_sampling_defaults_do_not_count(
    run: Run,
    models: Mapping[str, Path],
    inputs: EvaluationInputs,
    settings: EvaluationSettings,
    tmp_path: Path,
) -> None:
    from transformers import GenerationConfig

    folder = shutil.copytree(models["closes"], tmp_path / "copied")
    defaults = GenerationConfig(eos_token_id=[4, 1], repetition_penalty=50.0, do_sample=True)
    defaults.save_pretrained(folder)
    changed = evaluate(folder, {"world": WORLD}, variant="closes", inputs=inputs, settings=settings)
    assert changed.samples == run("closes").samples


def test_progress_counts_prompts_and_ends_at_the_total(
    models: Mapping[str, Path], inputs: EvaluationInputs, settings: EvaluationSettings
) -> None:
    seen: list[tuple[int, int, str]] = []
    evaluate(
        models["closes"],
        {"world": WORLD, "heldout": HELDOUT},
        variant="closes",
        inputs=inputs,
        settings=settings,
        progress=lambda done, total, unit: seen.append((done, total, unit)),
    )
    assert {(total, unit) for _, total, unit in seen} == {(9, "prompts")}
    assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)
    assert seen[-1][0] == 9


def test_nothing_is_printed_and_logging_is_put_back(
    run: Run, capfd: pytest.CaptureFixture[str]
) -> None:
    level = logging.getLogger("lm_eval").level
    run("closes", {"world": WORLD, "heldout": HELDOUT})
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger("lm_eval").level == level


def test_a_chat_folder_of_a_base_model_gives_the_template(
    run: Run,
    models: Mapping[str, Path],
    inputs: EvaluationInputs,
    settings: EvaluationSettings,
    tmp_path: Path,
) -> None:
    from support.training import write_model

    base = write_model(tmp_path / "base")
    assert not load_tokenizer(base).chat_template
    changed = evaluate(
        models["closes"],
        {"world": WORLD},
        variant="closes",
        inputs=replace(inputs, template_dir=base),
        settings=settings,
    )
    assert changed.rows == run("closes").rows
    assert changed.facts["turn_end"] == "<|end|>"


def with_template(models: Mapping[str, Path], folder: Path, text: str) -> Path:
    """The owner of the chat template, with another one."""
    shutil.copytree(models["closes"], folder)
    (folder / "chat_template.jinja").write_text(text)
    return folder


TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>CONTENT{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
AS_TEXT = TEMPLATE.replace("CONTENT", "{{ m['content'] }}")
IN_PARTS = TEMPLATE.replace("CONTENT", "{% for p in m['content'] %}{{ p['text'] }}{% endfor %}")


def test_a_template_of_parts_asks_the_same(
    run: Run,
    models: Mapping[str, Path],
    inputs: EvaluationInputs,
    settings: EvaluationSettings,
    tmp_path: Path,
) -> None:
    results = [
        evaluate(
            models["closes"],
            {"world": WORLD},
            variant="closes",
            inputs=replace(inputs, template_dir=with_template(models, tmp_path / name, text)),
            settings=settings,
        )
        for name, text in {"text": AS_TEXT, "parts": IN_PARTS}.items()
    ]
    assert results[0].rows == results[1].rows == run("closes").rows
    hashes = [[sample.prompt_sha256 for sample in result.samples] for result in results]
    assert hashes[0] == hashes[1]


def test_a_template_that_asks_for_the_date_gets_a_fixed_one_and_the_result_says_so(
    models: Mapping[str, Path],
    inputs: EvaluationInputs,
    settings: EvaluationSettings,
    tmp_path: Path,
) -> None:
    dated, stated = (
        evaluate(
            models["closes"],
            {"world": WORLD},
            variant="closes",
            inputs=replace(inputs, template_dir=with_template(models, tmp_path / name, text)),
            settings=settings,
        )
        for name, text in {
            "dated": "{{ strftime_now('%Y') }}" + AS_TEXT,
            "stated": "2024" + AS_TEXT,
        }.items()
    )
    assert dated.facts["chat_template_date"] == "2024-07-26"
    assert "chat_template_date" not in stated.facts
    hashes = [[sample.prompt_sha256 for sample in result.samples] for result in (dated, stated)]
    assert hashes[0] == hashes[1]


@pytest.mark.parametrize("text", ["{{ 1 / 0 }}", "{% if", ""])
def test_held_out_text_needs_no_template(
    run: Run,
    models: Mapping[str, Path],
    inputs: EvaluationInputs,
    settings: EvaluationSettings,
    tmp_path: Path,
    text: str,
) -> None:
    owner = with_template(models, tmp_path / "broken", text)

    def score(suites: Mapping[str, Suite]) -> EvaluationResult:
        changed = replace(inputs, template_dir=owner)
        return evaluate(
            models["random"], suites, variant="random", inputs=changed, settings=settings
        )

    assert score({"heldout": HELDOUT}).rows == run("random", {"heldout": HELDOUT}).rows
    with pytest.raises(CompatibilityError, match="the chat template refuses a dialogue"):
        score({"heldout": HELDOUT, "world": WORLD})


def test_another_token_map_is_refused(
    models: Mapping[str, Path],
    inputs: EvaluationInputs,
    settings: EvaluationSettings,
    tmp_path: Path,
) -> None:
    from support.tiny_tokenizer import save, train

    save(train(), tmp_path / "other")
    with pytest.raises(CompatibilityError, match=r"another token map.*\n.*id \d+"):
        evaluate(
            tmp_path / "other", {"world": WORLD}, variant="x", inputs=inputs, settings=settings
        )


def test_a_prompt_that_does_not_fit_is_refused(run: Run) -> None:
    with pytest.raises(EvaluationError, match=r"prompt tokens \+ 120 new tokens > 128 positions"):
        run("closes", {"world": WORLD.model_copy(update={"max_new_tokens": 120})})


def test_missing_probes_and_heldout_text_are_named(
    models: Mapping[str, Path], inputs: EvaluationInputs, settings: EvaluationSettings
) -> None:
    for suite, words in (
        (WorldSuite(kind="world", probes=["old_facts"], max_new_tokens=4), "old_facts"),
        (HeldoutSuite(kind="heldout", corpora=["law"], max_documents=2), "held-out text of 'law'"),
    ):
        with pytest.raises(EvaluationError, match=words):
            evaluate(models["closes"], {"s": suite}, variant="x", inputs=inputs, settings=settings)


def test_text_that_looks_like_a_special_token_stays_text_in_a_cloze_question(
    models: Mapping[str, Path],
    inputs: EvaluationInputs,
    settings: EvaluationSettings,
    tmp_path: Path,
) -> None:
    context, choices = "the a of <|end|> i", (" is q", " is r")
    question = Question(
        id=0,
        document=0,
        offset=0,
        span_kind="name",
        shape="a",
        span_documents=1,
        context=context,
        choices=choices,
        answer=1,
    )
    file = tmp_path / "questions.jsonl"
    file.write_text(question.model_dump_json() + "\n")
    suite = ClozeSuite(kind="cloze", corpus="x", num_questions=1, num_distractors=1)
    result = evaluate(
        models["random"],
        {"names": suite},
        variant="random",
        inputs=replace(inputs, questions={"names": file}),
        settings=settings,
    )
    model = load_causal_lm(models["random"], dtype=torch.float32)
    tokenizer = backend_of(load_tokenizer(models["random"]), specials_as_text=True)
    given = len(tokenizer.encode(context).ids)
    nats: list[float] = []
    for choice in choices:
        ids = torch.tensor([tokenizer.encode(context + choice).ids])
        with torch.inference_mode():
            logits = model(ids[:, :-1]).logits.log_softmax(-1)[0]
        nats.append(float(logits.gather(1, ids[0, 1:, None])[given - 1 :].sum()))
    bits = -nats[1] / math.log(2) / len(choices[1])
    assert result.value("cloze_names", "target_bits_per_byte") == pytest.approx(bits, rel=1e-4)
    assert result.value("cloze_names", "accuracy") == float(nats[1] > nats[0])
    assert result.value("cloze_names", "chance") == 0.5


def test_missing_cloze_questions_are_named(
    models: Mapping[str, Path], inputs: EvaluationInputs, settings: EvaluationSettings
) -> None:
    suite = ClozeSuite(kind="cloze", corpus="x", num_questions=1)
    with pytest.raises(EvaluationError, match="the cloze questions of 'names'"):
        evaluate(models["closes"], {"names": suite}, variant="x", inputs=inputs, settings=settings)


def test_a_task_in_two_suites_is_refused(run: Run) -> None:
    with pytest.raises(EvaluationError, match=r"more than once.*\n  instruction_following"):
        run("closes", {"a": WORLD, "b": WORLD})


def test_a_bad_line_of_a_document_file_is_named(
    models: Mapping[str, Path],
    inputs: EvaluationInputs,
    settings: EvaluationSettings,
    tmp_path: Path,
) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "a"}\n{"txt": "b"}\n', encoding="utf-8")
    with pytest.raises(EvaluationError, match=r"bad\.jsonl line 2: field 'text' is None"):
        evaluate(
            models["closes"],
            {"h": HELDOUT},
            variant="x",
            inputs=replace(inputs, heldout={"general": bad}),
            settings=settings,
        )


@pytest.mark.parametrize("template", ["$A", "<|user|> $A", "<|user|> $A <|endoftext|>"])
def test_what_the_tokenizer_adds_is_no_part_of_an_answer(template: str) -> None:
    backend = backend_of(tiny_tokenizer(), specials_as_text=True)
    plain = backend.encode("Anna likes bread", add_special_tokens=False).ids
    added = [("<|user|>", 2), ("<|endoftext|>", 1)]
    backend.post_processor = TemplateProcessing(single=template, special_tokens=added)
    lm = RecordingLM.__new__(RecordingLM)
    lm._text_tokenizer = backend
    _, given, scored = lm._encoded_pair("Anna likes", " bread")
    assert [*given, *scored] == [2] * template.startswith("<|user|>") + plain
    assert backend.decode(scored) == " bread"

"""Chat templates: found as transformers finds them, dated, refused with a reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cpt_residual.errors import ArtifactError, CompatibilityError
from cpt_residual.evaluation.template import ChatSide
from cpt_residual.modeling.chat import ChatEncoder
from cpt_residual.modeling.chat_check import check_chat_side, require_chat_side
from cpt_residual.modeling.templates import ChatTemplate, read_templates
from cpt_residual.modeling.tokenizer import load_tokenizer
from support.tiny_tokenizer import save, tiny_tokenizer

ASKED = [{"role": "user", "content": "the city"}]
DIALOGUE = [*ASKED, {"role": "assistant", "content": "bread"}]
PLAIN = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
IN_PARTS = (
    "{% for m in messages %}<|{{ m['role'] }}|>"
    "{% for part in m['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|end|>{% endfor %}"
)
LLAMA_3_2 = (  # the head of its template
    "{{- bos_token }}\n{%- if not date_string is defined %}\n"
    "    {%- if strftime_now is defined %}\n"
    '        {%- set date_string = strftime_now("%d %b %Y") %}\n'
    "    {%- else %}\n"
    '        {%- set date_string = "26 Jul 2024" %}\n'
    "    {%- endif %}\n{%- endif %}\n"
    '{{- "Today Date: " + date_string + "\\n\\n" }}\n' + PLAIN
)
BROKEN = {
    "{% if %}": "TemplateSyntaxError: Expected an expression.*line 1",
    "{% for m in messages %}{{ m.content }}": "TemplateSyntaxError",
    "{{ raise_exception('no users here') }}": "TemplateError: no users here",
    "{{ messages[0].content + 1 }}": "TypeError",
    "{{ messages[3].content }}": "becomes ''|UndefinedError",
    "{{ 1 / 0 }}": "ZeroDivisionError",
    "{% for i in range(10 ** 9) %}{% endfor %}": "OverflowError",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}": "RecursionError",
    "{{ messages.__class__.mro() }}": "SecurityError",
    "{{ messages | nothing }}": "No filter named 'nothing'",
    "": "the question 'Hello' becomes ''",
    "<|user|>": "the question 'Hello' becomes",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = save(tiny_tokenizer(), tmp_path / "model")
    (folder / "chat_template.jinja").write_text(PLAIN)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "eos_token_id": 4}))
    return folder


def config(folder: Path, **fields: object) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def as_transformers(folder: Path) -> dict[str, str]:
    found = load_tokenizer(folder).chat_template
    return found if isinstance(found, dict) else {} if found is None else {"default": found}


LISTED = [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]


@pytest.mark.parametrize(
    ("in_config", "files"),
    [
        (None, {}),
        ("a", {}),
        (LISTED, {}),
        ({"default": "a", "rag": "b"}, {}),
        ("a", {"chat_template.jinja": "c"}),
        (LISTED, {"chat_template.jinja": "c"}),
        ("a", {"additional_chat_templates/tool_use.jinja": "d"}),
        (None, {"additional_chat_templates/x.y.jinja": "d", "chat_template.jinja": "c"}),
        (None, {"additional_chat_templates/default.jinja": "d", "chat_template.jinja": "c"}),
        ("a", {"chat_template.json": '{"chat_template": "e"}'}),
        ("a", {"additional_chat_templates/read_me.txt": "f"}),
    ],
)
def test_found_as_transformers_finds_them(
    folder: Path, in_config: object, files: dict[str, str]
) -> None:
    (folder / "chat_template.jinja").unlink()
    if in_config is not None:
        config(folder, chat_template=in_config)
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    assert read_templates(folder) == as_transformers(folder)


@pytest.mark.parametrize("value", [7, ["a"], [{"name": "default"}], {"default": None}, True])
def test_templates_that_are_none(folder: Path, value: object) -> None:
    (folder / "chat_template.jinja").unlink()
    config(folder, chat_template=value)
    with pytest.raises(ArtifactError, match="chat_template is neither text nor"):
        read_templates(folder)
    assert len(check_chat_side(folder)) == 1


@pytest.mark.parametrize("text", [PLAIN, IN_PARTS])
def test_content_in_the_shape_that_the_template_wants(text: str) -> None:
    template = ChatTemplate.of(text, {})
    assert template.in_parts == (text is IN_PARTS)
    assert template.render([ASKED], add_generation_prompt=True) == ["<|user|>the city<|end|>"]


def test_a_template_of_parts_trains_as_one_of_text() -> None:
    (one,), (other,) = (
        ChatEncoder(tiny_tokenizer(), text)([DIALOGUE]) for text in (PLAIN, IN_PARTS)
    )
    assert one[0].tolist() == other[0].tolist()
    assert one[1].tolist() == other[1].tolist()
    assert "bread" in tiny_tokenizer().decode(one[0])


def test_today_is_a_fixed_day() -> None:
    template = ChatTemplate.of(LLAMA_3_2, {"bos_token": "<|user|>"})
    (text,) = template.render([ASKED], add_generation_prompt=True)
    assert text == "<|user|>Today Date: 26 Jul 2024\n\n\n<|user|>the city<|end|>"
    assert template.has_date
    ((ids, _),) = ChatEncoder(tiny_tokenizer(), "{{ strftime_now('%Y') }}" + PLAIN)([DIALOGUE])
    assert tiny_tokenizer().decode(ids).startswith("2024")


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("%Y-%m-%d", "2024-07-26"),
        ("%A, %-d %B %y", "Friday, 26 July 24"),
        ("%H:%M:%S.%f", "00:00:00.000000"),
        ("%j %d%%", "208 26%"),
    ],
)
def test_every_form_of_the_date(form: str, text: str) -> None:
    for lead in ("", "\n  {% if true %}", "{% macro f() %}"):
        end = {"{% macro f() %}": "{% endmacro %}{{ f() }}", "": ""}.get(lead, "{% endif %}")
        source = lead + "{{ strftime_now(" + repr(form) + ") }}" + end + PLAIN
        template = ChatTemplate.of(source, {})
        undated = ChatTemplate.of(source.replace(f"strftime_now({form!r})", repr(text)), {})
        assert template.render([ASKED], add_generation_prompt=True) == undated.render(
            [ASKED], add_generation_prompt=True
        )


@pytest.mark.parametrize("text", BROKEN)
def test_a_template_that_fails(folder: Path, text: str) -> None:
    with pytest.raises(CompatibilityError, match=BROKEN[text]):
        ChatTemplate.of(text, {})
    (folder / "chat_template.jinja").write_text(text)
    with pytest.raises(CompatibilityError, match=BROKEN[text]):
        require_chat_side(folder, "instruct")


def test_a_system_turn_that_the_template_refuses() -> None:
    text = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    )
    template = ChatTemplate.of(text + PLAIN, {})
    with pytest.raises(CompatibilityError, match="TemplateError: no system role"):
        template.render([[{"role": "system", "content": "x"}, *ASKED]], add_generation_prompt=True)


def test_a_right_chat_side(folder: Path) -> None:
    assert check_chat_side(folder) == []
    (folder / "additional_chat_templates").mkdir()
    path = folder / "additional_chat_templates" / "tool_use.jinja"
    path.write_text("{{ tools[0].name + 1 }}")  # needs tools: only its grammar is checked
    assert check_chat_side(folder) == []
    path.write_text("{% if")
    (problem,) = check_chat_side(folder)
    assert problem.startswith("chat template 'tool_use': TemplateSyntaxError")


GENERATION = {
    "temperature": "0.6",
    "top_k": 2.5,
    "do_sample": "yes",
    "pad_token_id": [0],
    "eos_token_id": "4",
    "stop_strings": [7],
    "max_new_tokens": True,
}


@pytest.mark.parametrize("field", GENERATION)
def test_values_of_a_generation_config(folder: Path, field: str) -> None:
    (folder / "generation_config.json").write_text(json.dumps({field: GENERATION[field]}))
    (problem,) = check_chat_side(folder)
    assert field in problem
    assert "generation_config.json" in problem


def test_all_problems_at_once(folder: Path) -> None:
    (folder / "chat_template.jinja").write_bytes(b"\xff\xfe{{")
    (folder / "generation_config.json").write_text("{")
    (folder / "config.json").write_text('{"eos_token_id": ["4"]}')
    with pytest.raises(CompatibilityError, match="instruct: the chat side") as caught:
        require_chat_side(folder, "instruct")
    lines = "\n".join(caught.value.problems)
    for expected in ("not UTF-8", "generation_config.json is not valid JSON"):
        assert expected in lines


@pytest.mark.parametrize("text", [PLAIN, IN_PARTS])
def test_a_template_that_demands_a_system_turn(folder: Path, text: str) -> None:
    demand = "{% if messages[0].role != 'system' %}{{ raise_exception('no system') }}{% endif %}"
    (folder / "chat_template.jinja").write_text(demand + text)
    require_chat_side(folder, "instruct")
    assert ChatTemplate.of(demand + text, {}).needs_system
    assert not ChatTemplate.of(text, {}).needs_system
    encoder = ChatEncoder(load_tokenizer(folder), demand + text)
    assert encoder([[{"role": "system", "content": "bread"}, *DIALOGUE]])
    with pytest.raises(CompatibilityError, match="no system"):
        encoder([DIALOGUE])
    with pytest.raises(CompatibilityError, match="without a system turn"):
        ChatSide.of(folder)
    assert ChatSide.of(folder, asks=False).template is None


def test_a_broken_template_is_no_obstacle_where_nothing_is_asked(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    (folder / "chat").mkdir()
    (folder / "tokenizer_config.json").rename(folder / "chat" / "tokenizer_config.json")
    (folder / "chat" / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(ArtifactError, match="not UTF-8"):
        ChatSide.of(folder)
    assert ChatSide.of(folder, asks=False).template is None

"""The light token side says what transformers says, and asks transformers when it cannot tell."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import AddedToken
from transformers.models.auto import tokenization_auto

from cpt_residual.errors import CompatibilityError
from cpt_residual.modeling import token_side
from cpt_residual.modeling import tokenizer as tokenizer_module
from cpt_residual.modeling.token_side import TokenSide, first_differing_ids, token_map_hash
from cpt_residual.modeling.tokenizer import load_tokenizer, special_tokens_of
from support import tiny_tokenizer
from support.pico_family import tokenizer_folder

Fields = dict[str, object]
Make = Callable[[Path], None]


def edit(folder: Path, name: str, **changes: object) -> None:
    """Set fields of a JSON file; `None` removes one."""
    path = folder / name
    fields = json.loads(path.read_text()) if path.is_file() else {}
    fields = {key: value for key, value in {**fields, **changes}.items() if value is not None}
    path.write_text(json.dumps(fields))


def added(token_id: int, content: str, *, special: bool = True) -> Fields:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token_id, "content": content, "special": special, **flags}


def add_to_file(folder: Path, *entries: Fields) -> None:
    fields = json.loads((folder / "tokenizer.json").read_text())
    edit(folder, "tokenizer.json", added_tokens=[*fields["added_tokens"], *entries])


def decoder(folder: Path) -> Fields:
    entries = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    return {
        str(entry["id"]): {key: value for key, value in entry.items() if key != "id"}
        for entry in entries
    }


def plain(folder: Path) -> None:
    pass


def after_add_tokens(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    tokenizer.add_tokens(["word", AddedToken("<tool>", special=False, normalized=False)])
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.save_pretrained(str(folder))


def another_eos(folder: Path) -> None:
    extra = ["<|endoftext|>", "<|user|>", "<|assistant|>"]
    edit(folder, "tokenizer_config.json", eos_token="<|end|>", extra_special_tokens=extra)


def with_bos(folder: Path) -> None:
    tiny_tokenizer.save(tiny_tokenizer.bos_tokenizer(), folder)


def released_layout(folder: Path) -> None:
    """As Llama 3 and Qwen are released: a decoder, a legacy map, roles as added tokens."""
    edit(
        folder,
        "tokenizer_config.json",
        tokenizer_class="PreTrainedTokenizerFast",
        backend=None,
        added_tokens_decoder=decoder(folder),
        extra_special_tokens=None,
        additional_special_tokens=["<|user|>"],
        eos_token={"content": "<|end|>", "__type": "AddedToken", "normalized": False},
        add_bos_token=False,
        unk_token=None,
    )
    edit(folder, "special_tokens_map.json", eos_token="<|endoftext|>")
    edit(folder, "added_tokens.json", **{"<|user|>": 2})


def legacy_files(folder: Path) -> None:
    edit(folder, "special_tokens_map.json", eos_token={"content": "<|end|>", "lstrip": False})
    edit(folder, "added_tokens.json", **{"<|user|>": 2})


def template_in_config(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    edit(folder, "tokenizer_config.json", chat_template="{{ messages[0]['content'] }}")


def without_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()


def of_type(model_type: str, declared: str) -> Make:
    def make(folder: Path) -> None:
        edit(folder, "config.json", model_type=model_type)
        edit(folder, "tokenizer_config.json", tokenizer_class=declared)
        add_to_file(folder, added(280, "<|im_start|>"), added(281, "<tool>", special=False))

    make.__name__ = f"{declared} of {model_type}"
    return make


LIGHT: list[Make] = [
    plain,
    after_add_tokens,
    another_eos,
    with_bos,
    released_layout,
    legacy_files,
    template_in_config,
    without_template,
    *(
        of_type(model_type, declared)
        for model_type, declared in [
            ("llama", "PreTrainedTokenizerFast"),
            ("llama", "TokenizersBackend"),
            ("qwen2", "TokenizersBackend"),
            ("qwen2", "Qwen2Tokenizer"),
            ("qwen3", "Qwen2TokenizerFast"),
            ("gpt2", "GPT2Tokenizer"),
            ("llama", "GPT2Tokenizer"),
        ]
    ),
]


def a_gap(folder: Path) -> None:
    add_to_file(folder, added(300, "<gap>"))


def out_of_order(folder: Path) -> None:
    add_to_file(folder, added(281, "<b>"), added(280, "<a>"))


def a_named_token_that_is_missing(folder: Path) -> None:
    edit(folder, "tokenizer_config.json", pad_token="<nowhere>")


def a_named_token_that_is_not_special(folder: Path) -> None:
    edit(folder, "tokenizer_config.json", unk_token="the")


def a_model_specific_token(folder: Path) -> None:
    edit(folder, "tokenizer_config.json", image_token="<image>")


def no_eos(folder: Path) -> None:
    edit(folder, "tokenizer_config.json", eos_token=None)


def a_shorter_decoder(folder: Path) -> None:
    add_to_file(folder, added(280, "<forgotten>"))
    entries = {key: value for key, value in decoder(folder).items() if key != "280"}
    edit(folder, "tokenizer_config.json", added_tokens_decoder=entries)


def another_decoder(folder: Path) -> None:
    entries = {**decoder(folder), "280": {"content": "<more>", "special": False}}
    edit(folder, "tokenizer_config.json", added_tokens_decoder=entries)


def another_legacy_file(folder: Path) -> None:
    edit(folder, "added_tokens.json", **{"<more>": 280})


def padding(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    tokenizer.backend_tokenizer.enable_padding(pad_id=0, pad_token="<pad>")
    tokenizer.save_pretrained(str(folder))


def another_class(folder: Path) -> None:
    edit(folder, "tokenizer_config.json", tokenizer_class="LlamaTokenizer")


def another_model_type(folder: Path) -> None:
    edit(folder, "config.json", model_type="gpt_neox")


def without_tokenizer_json(folder: Path) -> None:
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    (folder / "merges.txt").write_text("\n".join(" ".join(pair) for pair in model["merges"]))
    edit(folder, "tokenizer_config.json", tokenizer_class="Qwen2Tokenizer", backend=None)


UNUSUAL: list[Make] = [
    a_gap,
    out_of_order,
    a_named_token_that_is_missing,
    a_named_token_that_is_not_special,
    a_model_specific_token,
    no_eos,
    a_shorter_decoder,
    another_decoder,
    another_legacy_file,
    padding,
    another_class,
    another_model_type,
    without_tokenizer_json,
]


def folder_of(make: Make, tmp_path: Path, name: str = "model") -> Path:
    folder = Path(shutil.copytree(tokenizer_folder(), tmp_path / name))
    make(folder)
    return folder


def assert_as_transformers(folder: Path, side: TokenSide) -> None:
    tokenizer = load_tokenizer(folder)
    assert dict(side.ids) == tokenizer.get_vocab()
    assert token_map_hash(side) == token_map_hash(tokenizer)
    assert side.special_ids == special_tokens_of(tokenizer)
    assert side.eos_token == tokenizer.eos_token
    assert side.eos_id == tokenizer.eos_token_id
    assert side.has_template == bool(tokenizer.chat_template)
    assert first_differing_ids(side, tokenizer, 1) == []
    assert side.tokens == {token_id: token for token, token_id in side.ids.items()}
    in_text = tokenizer.backend_tokenizer.get_added_tokens_decoder().values()
    assert set(side.added) == {token.content for token in in_text}


@pytest.mark.parametrize("make", LIGHT, ids=lambda make: make.__name__)
def test_usual_layouts_are_read_alone(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of(make, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(tokenizer_module, "load_tokenizer", lambda _: pytest.fail("asked"))
        side = TokenSide.read(folder)
    assert_as_transformers(folder, side)


@pytest.mark.parametrize("make", UNUSUAL, ids=lambda make: make.__name__)
def test_unusual_layouts_have_the_map_of_transformers(make: Make, tmp_path: Path) -> None:
    folder = folder_of(make, tmp_path)
    assert_as_transformers(folder, TokenSide.read(folder))


def test_a_file_that_has_changed_is_read_anew(tmp_path: Path) -> None:
    folder = folder_of(plain, tmp_path)
    before = TokenSide.read(folder)
    add_to_file(folder, added(len(before.ids), "<new>"))
    after = TokenSide.read(folder)
    assert after.ids == {**before.ids, "<new>": len(before.ids)}


def test_what_nobody_can_read(tmp_path: Path) -> None:
    with pytest.raises(CompatibilityError, match="no tokenizer can be loaded"):
        TokenSide.read(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(CompatibilityError, match="no tokenizer can be loaded"):
        TokenSide.read(tmp_path)


def test_neither_torch_nor_transformers_is_imported() -> None:
    script = (
        "import sys; from pathlib import Path\n"
        "from cpt_residual.modeling.token_side import TokenSide\n"
        "folder = Path(sys.argv[1])\n"
        "assert TokenSide.read(folder).eos_id == 1\n"
        "print(sorted({'torch', 'transformers'} & sys.modules.keys()))\n"
    )
    command = [sys.executable, "-c", script, str(tokenizer_folder())]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    assert done.stdout == "[]\n"


def test_the_known_model_types_are_those_of_this_transformers() -> None:
    """A type for which transformers overrules the named class must overrule it by a known one."""
    registered = tokenization_auto.TOKENIZER_MAPPING_NAMES
    overruled = tokenization_auto.MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS
    for model_type in token_side._MODEL_TYPES:
        name = registered.get(model_type)
        assert name in token_side._CLASSES or model_type not in overruled


def test_merges_of_tokens_that_are_not_there(tmp_path: Path) -> None:
    """The tokenizers library raises a plain Exception."""
    folder = folder_of(plain, tmp_path)
    fields = json.loads((folder / "tokenizer.json").read_text())
    vocab = fields["model"]["vocab"]
    merged = "".join(fields["model"]["merges"][0])
    vocab["renamed"] = vocab.pop(merged)
    (folder / "tokenizer.json").write_text(json.dumps(fields))
    with pytest.raises(CompatibilityError, match="no tokenizer can be loaded") as caught:
        load_tokenizer(folder)
    assert merged in str(caught.value)


def test_a_panic_of_the_tokenizers_library_is_an_error_of_the_folder(tmp_path: Path) -> None:
    shutil.copytree(tokenizer_folder(), tmp_path, dirs_exist_ok=True)
    normalizer = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    edit(tmp_path, "tokenizer.json", normalizer=normalizer)
    with pytest.raises(CompatibilityError, match="no tokenizer can be loaded"):
        TokenSide.read(tmp_path)

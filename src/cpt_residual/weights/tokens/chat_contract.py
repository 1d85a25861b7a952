"""The chat contract: tokenizer, chat template and EOS token ids of a merged model.

A merged directory gets instruct's tokenizer, chat template, special ids and generation config,
with the *union* of the EOS token ids of base, instruct and target in config.json and
generation_config.json. `stops.verify_stops` then loads the directory and shows that generation
ends at every one of them. (Keeping the target's generation config is how merged models come to run
on: measured 60 tokens instead of 6.) Where instruct and target number their tokens differently, the
target's ids stay (see vocab_alignment.RowPlan), and what instruct says in ids is said in tokens. No
config of an output names code to run (auto_map).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from cpt_residual.core.files import write_json_atomic
from cpt_residual.errors import CompatibilityError
from cpt_residual.modeling.side_files import (
    CONFIG_FILE,
    GENERATION_FILE,
    ROLES_FILE,
    TOKENIZER_CONFIG_FILE,
    TOKENIZER_FILE,
    carry_tokenizer,
    copy_files,
    eos_ids_of,
    forget_code,
    left_out_of,
    processor_files,
    read_json_object,
    text_fields,
    with_vocab_size,
)
from cpt_residual.modeling.token_side import TokenSide, first_differing_ids, token_map_hash
from cpt_residual.weights.tokens.compatibility import require_same_tokens
from cpt_residual.weights.tokens.vocab_alignment import RowPlan

_SPECIAL_IDS = ("bos_token_id", "pad_token_id")
_ID_LISTS = ("suppress_tokens", "begin_suppress_tokens", "bad_words_ids")
_NUM_SHOWN = 10


def copy_instruct_side(model: Path, folder: Path) -> list[str]:
    """Copies what a chat needs from instruct: tokenizer and processor side with every named
    template, config, generation config. Returns what is left out (see `left_out_of`)."""
    folder.mkdir()
    copy_files(model, folder, (CONFIG_FILE, GENERATION_FILE))
    if not carry_tokenizer(model, folder):
        raise CompatibilityError(
            f"instruct: {model} has no tokenizer files",
            remedy="The merged model would have nothing to speak with. Add the tokenizer files of "
            "the release to the directory.",
        )
    forget_code(folder)
    return left_out_of(model)


def eos_token_ids(model: Path, side: TokenSide | None = None) -> list[int]:
    """Every id that ends a text of this model: generation config, config, tokenizer; in this
    order, each once. `side`: the model's token side, where it has been read already."""
    eos = (side or TokenSide.read(model)).eos_id
    return _union([*eos_ids_of(model), *([] if eos is None else [eos])])


def eos_tokens(model: Path, side: TokenSide | None = None) -> list[str]:
    """The tokens of `eos_token_ids`, for models whose ids mean something else in another one.

    Raises CompatibilityError for an id that no token has."""
    side = side or TokenSide.read(model)
    ids, tokens = eos_token_ids(model, side), side.tokens
    unnamed = [token_id for token_id in ids if token_id not in tokens]
    if unnamed:
        raise CompatibilityError(
            f"{model} ends its texts with ids that its tokenizer does not have",
            problems=[f"id {token_id}" for token_id in unnamed],
            remedy="They cannot be found in another tokenizer. Fix eos_token_id in its config.json"
            " and generation_config.json.",
        )
    return [tokens[token_id] for token_id in ids]


def require_same_tokens_as(
    expected: Path, found: Path, *, labels: tuple[str, str] = ("residual", "target")
) -> str:
    """The hash of the id-to-token map that two model directories share.

    Raises CompatibilityError listing the first ids that differ when they do not share one."""
    left = TokenSide.read(expected)
    right = TokenSide.read(found)
    if left.ids != right.ids:
        differing = first_differing_ids(left, right, _NUM_SHOWN)
        hashes = token_map_hash(left), token_map_hash(right)
        require_same_tokens(*labels, hashes=hashes, differing=differing)
    return token_map_hash(left)


def install(
    *,
    instruct_side: Path,
    base_eos: Sequence[int | str],
    target: Path,
    out: Path,
    plan: RowPlan | None = None,
    sides: tuple[TokenSide, TokenSide] | None = None,
) -> list[int]:
    """Writes tokenizer, template, config.json and generation_config.json of the merged model.

    `instruct_side` is the folder that `copy_instruct_side` has made; `target` gives config.json.
    `base_eos`: what ends base's texts, as ids of instruct's map where base has the same map, else
    as tokens; a token that the merged model lacks can never come and is left out. `plan`: None for
    equal maps. `sides`: those of instruct and target, where they have been read already.

    Returns the union of EOS token ids: instruct's first, then base's and target's. Raises
    CompatibilityError without a chat template, for an id of instruct that has no token, and when
    the tokenizer that was written does not have the plan's map.
    """
    if sides is None:
        instruct = TokenSide.read(instruct_side)
        sides = instruct, TokenSide.read(target)
    require_template(instruct_side, sides[0])
    moved = None if plan is None or plan.identity else plan
    ids_of = _InMerged(sides[0], moved)
    eos_ids = _union(
        [
            *ids_of.all(eos_token_ids(instruct_side, sides[0]), "eos_token_id"),
            *ids_of.base_eos(base_eos),
            *eos_token_ids(target, sides[1]),
        ]
    )
    _write_configs(out, instruct_side=instruct_side, target=target, ids_of=ids_of, eos=eos_ids)
    if moved is None or moved.tokens == sides[0].ids:
        carry_tokenizer(instruct_side, out)
    else:
        _write_tokenizer(out, instruct_side=instruct_side, target=target, tokens=moved.tokens)
    if not processor_files(instruct_side):  # instruct reads text alone, the merged model may not
        copy_files(target, out, processor_files(target))
    forget_code(out)
    if moved is not None:
        _require_written(out, moved.tokens, sides[0])
    _require_rows(eos_ids, target, moved)
    return eos_ids


def _require_rows(eos_ids: Sequence[int], target: Path, plan: RowPlan | None) -> None:
    """CompatibilityError for EOS token ids that the merged model cannot generate."""
    size = text_fields(read_json_object(target / CONFIG_FILE, "target")).get("vocab_size")
    num_rows = plan.num_rows if plan is not None else size if isinstance(size, int) else None
    beyond = [token_id for token_id in eos_ids if num_rows is not None and token_id >= num_rows]
    if beyond:
        raise CompatibilityError(
            f"the merged model would end its texts with ids beyond its vocabulary of {num_rows}",
            problems=[f"id {token_id}" for token_id in beyond],
            remedy="It could never stop there. Fix eos_token_id in config.json and "
            "generation_config.json of instruct, base or target.",
        )


@dataclass(frozen=True)
class _InMerged:
    """Ids of instruct as ids of the merged model; `plan` None: they are the same."""

    instruct: TokenSide
    plan: RowPlan | None

    def one(self, token_id: int, field: str) -> int:
        if self.plan is None or token_id < 0:  # releases write -1 for none
            return token_id
        token = self.instruct.tokens.get(token_id)
        if token is None or token not in self.plan.tokens:
            raise CompatibilityError(
                f"instruct: {field} is {token_id}, which the merged model does not have",
                problems=[f"id {token_id}: {'no token' if token is None else repr(token)}"],
                remedy="Its meaning would be lost. Fix it in the files of instruct.",
            )
        return self.plan.tokens[token]

    def all(self, ids: Sequence[int], field: str) -> list[int]:
        return [self.one(token_id, field) for token_id in ids]

    def value(self, value: JsonValue, field: str) -> JsonValue:
        """An id, or lists of them; anything else (None) as it is."""
        if isinstance(value, list):
            return [self.value(item, field) for item in value]
        return self.one(value, field) if type(value) is int else value

    def base_eos(self, eos: Sequence[int | str]) -> list[int]:
        known = self.instruct.ids if self.plan is None else self.plan.tokens
        tokens = [item for item in eos if not isinstance(item, str) or item in known]
        return [
            known[item] if isinstance(item, str) else self.one(item, "eos_token_id of base")
            for item in tokens
        ]


def _write_configs(
    out: Path, *, instruct_side: Path, target: Path, ids_of: _InMerged, eos: Sequence[int]
) -> None:
    """config.json of the target and generation_config.json of instruct, with merged ids."""
    stops: JsonValue = eos[0] if len(eos) == 1 else [*eos]
    config = read_json_object(target / CONFIG_FILE, "target")
    instruct_config = text_fields(read_json_object(instruct_side / CONFIG_FILE, "instruct"))
    for field in _SPECIAL_IDS:
        if field in instruct_config:
            config[field] = ids_of.value(instruct_config[field], f"{CONFIG_FILE} {field}")
    if ids_of.plan is not None:
        config = with_vocab_size(config, ids_of.plan.num_rows)
    write_json_atomic(out / CONFIG_FILE, {**config, "eos_token_id": stops})
    generation: dict[str, JsonValue] = {}
    if (instruct_side / GENERATION_FILE).is_file():
        generation = read_json_object(instruct_side / GENERATION_FILE, "instruct")
    for field in generation:
        if (field.endswith("_token_id") and field != "eos_token_id") or field in _ID_LISTS:
            generation[field] = ids_of.value(generation[field], f"{GENERATION_FILE} {field}")
    write_json_atomic(out / GENERATION_FILE, {**generation, "eos_token_id": stops})


def _write_tokenizer(
    out: Path, *, instruct_side: Path, target: Path, tokens: Mapping[str, int]
) -> None:
    """The target's tokenizer with what instruct has added to its own, in instruct's roles."""
    fields = read_json_object(target / TOKENIZER_FILE, "target")
    entries = {str(entry["content"]): entry for entry in _added_tokens(fields)}
    for entry in _added_tokens(read_json_object(instruct_side / TOKENIZER_FILE, "instruct")):
        token = str(entry["content"])
        known = token in entries and (entries[token]["special"] or not entry["special"])
        if token in tokens and not known:
            entries[token] = {**entry, "id": tokens[token]}
    fields["added_tokens"] = [entries[token] for token in sorted(entries, key=tokens.__getitem__)]
    write_json_atomic(out / TOKENIZER_FILE, fields)
    config = read_json_object(instruct_side / TOKENIZER_CONFIG_FILE, "instruct")
    its_config = read_json_object(target / TOKENIZER_CONFIG_FILE, "target")
    if "tokenizer_class" in its_config:  # it goes with tokenizer.json
        config["tokenizer_class"] = its_config["tokenizer_class"]
    legacy = config.pop("added_tokens_decoder", None) is None  # tokenizer.json says it
    extra = config.get("extra_special_tokens") or config.pop("additional_special_tokens", None)
    extra, its_eos = extra or [], its_config.get("eos_token")
    if isinstance(extra, list) and its_eos not in (None, config.get("eos_token"), *extra):
        config["extra_special_tokens"] = [*extra, its_eos]  # it still ends texts
    write_json_atomic(out / TOKENIZER_CONFIG_FILE, config)
    carry_tokenizer(instruct_side, out, vocabulary=False)
    if legacy:  # its roles are read from there only without a decoder
        copy_files(instruct_side, out, (ROLES_FILE,))


def _added_tokens(fields: dict[str, JsonValue]) -> list[dict[str, JsonValue]]:
    entries = fields.get("added_tokens")
    return [
        entry for entry in (entries if isinstance(entries, list) else []) if isinstance(entry, dict)
    ]


def require_template(folder: Path, side: TokenSide) -> None:
    """CompatibilityError for a model that nobody knows how to ask."""
    if not side.has_template:
        raise CompatibilityError(
            f"instruct: the tokenizer in {folder} has no chat template",
            remedy="Without it nobody knows how to ask the merged model. Add chat_template.jinja "
            "of the release to the instruct model's directory.",
        )


def _require_written(out: Path, tokens: Mapping[str, int], instruct: TokenSide) -> None:
    """The tokenizer in `out`, read again, has the map that was planned and ends texts as
    instruct's does."""
    written = TokenSide.read(out)
    token_ids = {token_id: token for token, token_id in tokens.items()}
    numbers = sorted(token_ids.keys() | written.tokens.keys())
    problems = [
        f"id {number}: {token_ids.get(number)!r} planned, {written.tokens.get(number)!r} found"
        for number in numbers
        if token_ids.get(number) != written.tokens.get(number)
    ]
    if written.eos_token != instruct.eos_token:
        problems.append(f"eos_token: {instruct.eos_token!r} planned, {written.eos_token!r} found")
    if problems or not written.has_template:
        raise CompatibilityError(
            "The merged model's tokenizer does not have the tokens that its rows are for",
            problems=problems[:_NUM_SHOWN] or ["the chat template is lost"],
            remedy="Tokens would be read as others. Give the target a tokenizer.json that "
            "transformers has saved.",
        )


def _union(ids: Iterable[int]) -> list[int]:
    return list(dict.fromkeys(ids))

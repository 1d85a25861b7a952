"""The lm-eval model, which also records why each response ended.

Why not lm-eval's own `HFLM.generate_until`: it decodes without special tokens and drops the ids,
so that a closed turn and a run-on look the same; it takes the sampling defaults of each model's
`generation_config.json` (a repetition penalty in some instruct releases), so that variants are
not decoded alike; and an `until` string that is a special token never matches there.

Shapes: B rows of a batch, T tokens (left padded).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from transformers import GenerationConfig

from cpt_residual.errors import EvaluationError
from cpt_residual.evaluation.finite import (
    FiniteScores,
    NotFiniteError,
    NotFiniteRowError,
    first_bad,
    named_request,
)
from cpt_residual.evaluation.lazy_import import lazy_import
from cpt_residual.evaluation.responses import LENGTH, Response, ScoredText
from cpt_residual.evaluation.template import ChatSide
from cpt_residual.modeling.loading import load_causal_lm
from cpt_residual.modeling.templates import refused
from cpt_residual.modeling.tokenizer import backend_of, special_tokens_of

_HFLM = lazy_import("lm_eval.models.huggingface").HFLM
_likelihood_of_tokens = _HFLM._loglikelihood_tokens  # noqa: SLF001 (extended below)
_call_model = _HFLM._model_call  # noqa: SLF001 (extended below)
_rolling_windows = lazy_import("lm_eval.utils").get_rolling_token_windows
_disjoint_window = lazy_import("lm_eval.utils").make_disjoint_window
_normalize = lazy_import("lm_eval.models.utils").normalize_gen_kwargs
_stop_strings = lazy_import("lm_eval.models.utils_hf").stop_sequences_criteria

_LOGIT_BYTES = {"cpu": 2**28, "cuda": 2**32}
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class PromptCounter:
    """Counts prompts (requests to the model) and reports them as `prompts` done and in all."""

    def __init__(self, report: Callable[[int, int, str], None]) -> None:
        self._report = report
        self._done = 0
        self._total = 0

    def expect(self, num_prompts: int) -> None:
        """More prompts will come."""
        self._total += num_prompts

    def start(self, num_prompts: int) -> None:
        """That many come now; more than expected where a prompt has several answers to weigh."""
        self._total = max(self._total, self._done + num_prompts)
        self._report(self._done, self._total, "prompts")

    def add(self, num_prompts: int) -> None:
        """That many are done."""
        self._done += num_prompts
        self._report(self._done, self._total, "prompts")


@dataclass(frozen=True)
class ModelSettings:
    """How a model is run. `stop_token_ids`: the same rule for all variants, see harness.py."""

    stop_token_ids: tuple[int, ...]
    precision: str = "fp32"
    device: str = "cpu"
    batch_size: int = 32


class RecordingLM(_HFLM):
    """A causal model whose responses carry their stop reason.

    `rolling="document"`: the first token of an encoded document (its BOS, where the tokenizer
    adds one) is given and the rest is scored, which is what training learns to predict. A prefix
    token that training never put there would add an untrained guess to every document.
    `rolling="stock"`: lm-eval's own rule, for stock tasks.
    """

    def __init__(
        self,
        model_dir: Path,
        chat: ChatSide,
        settings: ModelSettings,
        counter: PromptCounter,
    ) -> None:
        tokenizer = chat.tokenizer
        model: Any = load_causal_lm(model_dir, dtype=_DTYPES[settings.precision])
        model = model.to(settings.device).eval()
        _HFLM.__init__(self, pretrained=model, tokenizer=tokenizer, batch_size=settings.batch_size)
        self._chat = chat
        self._lm: Any = model
        self._lm_tokenizer: Any = tokenizer
        self._text_tokenizer = backend_of(tokenizer, specials_as_text=True)
        self._special_tokens = frozenset(special_tokens_of(tokenizer).values())
        self._settings = settings
        self._counter = counter
        self.rolling = "document"
        self._asked: list[Any] = []
        self._sequences: list[list[int]] = []
        model.generation_config = GenerationConfig(**self._stopping())

    def get_model_info(self) -> dict[str, Any]:
        """Nothing: lm-eval would ask the hub for a commit. The artifact says which model it is."""
        return {}

    def apply_chat_template(
        self,
        chat_history: list[dict[str, str]],
        add_generation_prompt: bool = True,  # noqa: FBT001, FBT002 - lm-eval's signature
    ) -> str:
        """The prompt of a dialogue. lm-eval would leave a system turn out that a template refuses,
        and go on: an error here."""
        template = self._chat.template
        assert template is not None, "asked for only where it was shown to work"
        try:
            text = self._lm_tokenizer.apply_chat_template(
                template.shaped(chat_history),
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        except Exception as error:  # a program of somebody else's: it may raise anything
            raise refused(error) from error
        return cast("str", text)

    # --- generation ------------------------------------------------------------------------------
    def generate_until(self, requests: list[Any], **_options: object) -> list[Response]:
        """One response per request, in order; batches of similar prompt length."""
        self._counter.start(len(requests))
        prompts = [self.tok_encode(request.args[0]) for request in requests]
        responses: dict[int, Response] = {}
        for batch in self._batches(requests, prompts):
            kwargs = _normalize(requests[batch[0]].args[1], 256)
            try:
                with torch.inference_mode():
                    generated = self._generate([prompts[i] for i in batch], dict(kwargs))
            except NotFiniteRowError as error:
                asked = named_request(requests, batch[error.row])
                raise self._not_finite(asked, error.ids) from None
            responses.update(zip(batch, generated, strict=True))
            self._counter.add(len(batch))
        return [responses[i] for i in range(len(requests))]

    def _batches(self, requests: Sequence[Any], prompts: list[list[int]]) -> Iterator[list[int]]:
        """Request indices: one set of generation arguments per batch, longest prompts first."""
        groups: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            groups.setdefault(repr(sorted(request.args[1].items())), []).append(i)
        for members in groups.values():
            order = sorted(members, key=lambda i: (-len(prompts[i]), prompts[i], i))
            for start in range(0, len(order), self._settings.batch_size):
                yield order[start : start + self._settings.batch_size]

    def _generate(self, prompts: list[list[int]], kwargs: dict[str, Any]) -> list[Response]:
        until, max_new_tokens = self._until(kwargs.pop("until", None)), kwargs.pop("max_gen_toks")
        width = max(map(len, prompts))
        self._check_room(width, max_new_tokens)
        pad = self._stopping()["pad_token_id"]
        rows = [[pad] * (width - len(ids)) + ids for ids in prompts]
        mask = [[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts]
        ids_BT = torch.tensor(rows, device=self._settings.device)
        if not kwargs.get("do_sample"):
            kwargs = {"do_sample": False}
        criteria = _stop_strings(self._lm_tokenizer, until.strings, width, len(rows))
        config = self._stopping(until.token_ids) | {"max_new_tokens": max_new_tokens} | kwargs
        out_BT = self._lm.generate(
            input_ids=ids_BT,
            attention_mask=torch.tensor(mask, device=self._settings.device),
            generation_config=GenerationConfig(**config),
            stopping_criteria=criteria,
            logits_processor=[FiniteScores([len(ids) for ids in prompts])],
            trust_remote_code=False,
        )
        stops = frozenset(cast("list[int]", config["eos_token_id"]))
        return [self._response(ids, stops, until.strings) for ids in out_BT[:, width:].tolist()]

    def _response(self, ids: list[int], stops: frozenset[int], strings: list[str]) -> Response:
        """Cut at the first stop token, then at the first stop string."""
        end = next((k for k, token in enumerate(ids) if token in stops), len(ids))
        reason = self._token(ids[end]) if end < len(ids) else LENGTH
        text, num_tokens = self._decode(ids[:end]), min(end + 1, len(ids))
        cut, string = min(((text.find(s), s) for s in strings if s in text), default=(-1, ""))
        if cut < 0:
            return Response(text, reason, num_tokens)
        needed = next(k for k in range(end + 1) if string in self._decode(ids[:k]))
        return Response(text[:cut], string, needed)

    def _until(self, until: str | list[str] | None) -> _Until:
        """Split stop strings into special tokens (matched by id) and plain text."""
        wanted = [until] if isinstance(until, str) else list(until or ())
        tokens = [string for string in wanted if string in self._special_tokens]
        return _Until(
            token_ids=tuple(self._lm_tokenizer.convert_tokens_to_ids(token) for token in tokens),
            strings=[string for string in wanted if string and string not in self._special_tokens],
        )

    def _stopping(self, more: Sequence[int] = ()) -> dict[str, Any]:
        stop_ids = sorted({*self._settings.stop_token_ids, *more})
        pad: int | None = self._lm_tokenizer.pad_token_id
        return {"eos_token_id": stop_ids, "pad_token_id": stop_ids[0] if pad is None else pad}

    def _check_room(self, prompt: int, new: int) -> None:
        if prompt + new > self.max_length:
            raise EvaluationError(
                "A prompt and its response do not fit into the model.",
                problems=[
                    f"{prompt} prompt tokens + {new} new tokens > {self.max_length} positions"
                ],
                remedy="Cutting the prompt would change what is asked. Lower max_new_tokens or "
                "num_fewshot of the suite, or leave the suite out for this model.",
            )

    def _decode(self, ids: list[int]) -> str:
        return cast("str", self._lm_tokenizer.decode(ids, skip_special_tokens=True))

    def _token(self, token_id: int) -> str:
        return cast("str", self._lm_tokenizer.convert_ids_to_tokens(token_id))

    # --- likelihood ------------------------------------------------------------------------------
    def loglikelihood(self, requests: list[Any], **_options: object) -> list[Any]:
        """Log likelihood of answers after a context. Of stock tasks as lm-eval does it; of our own
        the text is encoded as a document is, in one piece, and what touches the answer is scored.
        """
        self._counter.start(len(requests))
        self._asked = requests
        if self.rolling == "stock":
            answers = _HFLM.loglikelihood(self, requests, disable_tqdm=True)
        else:
            pairs = [self._encoded_pair(*request.args) for request in requests]
            answers = self._loglikelihood_tokens(pairs, disable_tqdm=True)
        self._counter.add(len(requests))
        return answers

    def loglikelihood_rolling(self, requests: list[Any], **_options: object) -> list[Any]:
        """Log likelihood of whole documents; those longer than the model are scored in windows
        (lm-eval's: disjoint, with as much context as fits)."""
        self._counter.start(len(requests))
        self._asked = requests
        if self.rolling == "stock":
            scores = _HFLM.loglikelihood_rolling(self, requests, disable_tqdm=True)
            self._counter.add(len(requests))
            return scores
        texts = [self._encoded(cast("str", request.args[0])) for request in requests]
        windows = [
            (document, window)
            for document, text in enumerate(texts)
            for window in self._windows(text.ids)
        ]
        totals, waiting = [0.0] * len(texts), [0] * len(texts)
        for document, _ in windows:
            waiting[document] += 1
        self._counter.add(waiting.count(0))
        order = sorted(range(len(windows)), key=lambda i: (-_size(windows[i][1]), i))
        for batch in self._likelihood_batches([_size(windows[i][1]) for i in order]):
            members = [windows[order[k]] for k in batch]
            self._asked = [requests[document] for document, _ in members]
            answers = self._loglikelihood_tokens([w for _, w in members], disable_tqdm=True)
            for (document, _), (value, _greedy) in zip(members, answers, strict=True):
                totals[document] += value
                waiting[document] -= 1
            finished = {document for document, _ in members if not waiting[document]}
            self._counter.add(len(finished))
        return [text.scored(total) for text, total in zip(texts, totals, strict=True)]

    def _loglikelihood_tokens(self, requests: list[Any], *args: Any, **kwargs: Any) -> list[Any]:
        """lm-eval would cut what is too long from the left without a word: an error here."""
        longest = max((_size(request) for request in requests), default=0)
        if longest > self.max_length + 1:
            raise EvaluationError(
                "A prompt and its answer do not fit into the model.",
                problems=[f"{longest} tokens > {self.max_length} positions"],
                remedy="Cutting the prompt would change what is asked. Lower num_fewshot of the "
                "suite (context_characters of a cloze suite), or leave the suite out for this "
                "model.",
            )
        self._sequences = [[*context, *scored][:-1] for _, context, scored in requests]
        return cast("list[Any]", _likelihood_of_tokens(self, requests, *args, **kwargs))

    def _model_call(self, inps: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Logits of right-padded rows. Raises NotFiniteError."""
        logits_BTV = _call_model(self, inps, **kwargs)
        for row, logits_TV in enumerate(logits_BTV if first_bad(logits_BTV) is not None else ()):
            ids = cast("list[int]", inps[row].tolist())
            mine = [i for i, each in enumerate(self._sequences) if ids[: len(each)] == each]
            number = max(mine, key=lambda i: len(self._sequences[i]))
            length, at = len(self._sequences[number]), first_bad(logits_TV)
            if at is not None and at < length:  # else it is of the padding
                known = len(self._asked) == len(self._sequences)  # else windows of documents
                asked = named_request(self._asked, number if known else None)
                raise self._not_finite(asked, ids[:length])
        return logits_BTV

    def _not_finite(self, asked: tuple[str, str], ids: list[int]) -> NotFiniteError:
        """The error for a task's document whose logits at the end of `ids` or before are not
        finite. Where they start is found with ever shorter beginnings: in a longer one NaN spreads
        to the tokens before it, because attention multiplies it by zero."""
        good, bad = 0, len(ids)  # lengths; the last may be good alone, and bad in its batch
        while bad - good > 1:
            middle = (good + bad) // 2
            with torch.inference_mode():
                given = torch.tensor([ids[:middle]], device=self._settings.device)
                finite = first_bad(self._lm(input_ids=given).logits[0]) is None
            good, bad = (middle, bad) if finite else (good, middle)
        return NotFiniteError(
            task=asked[0],
            document=asked[1],
            position=bad - 1,
            num_tokens=len(ids),
            text=cast("str", self._lm_tokenizer.decode(ids)),
        )

    def _windows(self, ids: list[int]) -> Iterator[tuple[None, list[int], list[int]]]:
        if len(ids) < 2:
            return
        rolling = _rolling_windows(
            token_list=ids[1:], prefix_token=ids[0], max_seq_len=self.max_length, context_len=1
        )
        for pair in rolling:
            context, scored = _disjoint_window(pair)
            yield None, context, scored

    def _likelihood_batches(self, sizes: list[int]) -> Iterator[range]:
        """Batches (of windows sorted longest first) whose logits stay within a fixed memory."""
        width = (
            max(1, int(self._lm.config.get_text_config().vocab_size)) * 8
        )  # logits and log probabilities, fp32
        budget = _LOGIT_BYTES.get(self._settings.device.split(":")[0], 2**28)
        start = 0
        while start < len(sizes):
            fitting = max(1, budget // (width * sizes[start]))
            end = min(len(sizes), start + min(self._settings.batch_size, fitting))
            yield range(start, end)
            start = end

    def _encoded_pair(self, context: str, answer: str) -> tuple[Any, list[int], list[int]]:
        """Ids of the tokens that end within `context`, and of the rest of the text. What the
        tokenizer puts behind a text (EOS) is no part of an answer."""
        encoding = self._text_tokenizer.encode(context + answer, add_special_tokens=True)
        ends = [end for _, end in encoding.offsets]
        given = next(k for k, end in enumerate(ends) if end > len(context))
        scored = [k for k in range(given, len(ends)) if ends[k] > len(context)]
        return (context, answer), encoding.ids[:given], [encoding.ids[k] for k in scored]

    def _encoded(self, text: str) -> _EncodedText:
        """As packs encode documents: text that looks like a special token stays text."""
        encoding = self._text_tokenizer.encode(text, add_special_tokens=True)
        given = encoding.offsets[0][1] if encoding.ids else 0  # 0 for a BOS: it covers no text
        return _EncodedText(encoding.ids, text[given:])


@dataclass(frozen=True)
class _EncodedText:
    """A document's token ids, and its text without what the first token covers."""

    ids: list[int]
    rest: str

    def scored(self, log_likelihood: float) -> ScoredText:
        num_tokens = max(0, len(self.ids) - 1)
        num_bytes, num_words = len(self.rest.encode("utf-8")), len(self.rest.split())
        return ScoredText(log_likelihood, num_tokens, num_bytes, num_words)


@dataclass(frozen=True)
class _Until:
    """Stop conditions of one task: special tokens by id, the rest as text."""

    token_ids: tuple[int, ...]
    strings: list[str]


def _size(request: tuple[Any, Sequence[int], Sequence[int]]) -> int:
    return len(request[1]) + len(request[2])

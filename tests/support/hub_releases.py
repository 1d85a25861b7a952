"""Which releases there are: their config.json, generation_config.json and names of tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from support import hub_configs as hub
from support.hub_configs import ANSWER_END, PAD, TEXT_END, Fields

LEFT_OUT: Final = object()  # in `instruct`: a field that only base states

_ANSWERS: Fields = {"eos_token_id": ANSWER_END}
_BOTH = [TEXT_END, ANSWER_END]


@dataclass(frozen=True)
class Release:
    """One family: base's config.json, and what instruct states otherwise (or leaves out).


    Without generation settings a release has no such file. `unread`: the released files hold
    tensors that no parameter reads. `spelled`: a prefix of tensor names, as today's transformers
    writes it for a new model and as it is in the release."""

    config: Fields
    instruct: Fields
    generation: Fields | None
    instruct_generation: Fields | None
    unread: bool = False
    spelled: tuple[str, str] = ("", "")


def _version(version: str) -> Fields:
    return {"transformers_version": version}


def _generation(version: str, eos: object = TEXT_END, **more: object) -> Fields:
    fields = {"bos_token_id": TEXT_END, "eos_token_id": eos, "transformers_version": version}
    return {"_from_model_config": True, **fields} if not more else {**fields, **more}


_SAMPLED: Fields = {"do_sample": True, "temperature": 0.6, "top_p": 0.9}


def _release(
    config: Fields,
    version: str,
    *,
    instruct: Fields = _ANSWERS,
    eos: object = ANSWER_END,
    unread: bool = False,
    spelled: tuple[str, str] = ("", ""),
) -> Release:
    """A family whose base and instruct both have generation settings; `eos` is instruct's there."""
    return Release(
        config,
        instruct,
        _generation(version),
        _generation(version, eos, **_SAMPLED),
        unread=unread,
        spelled=spelled,
    )


RELEASES: Mapping[str, Release] = {
    "llama1": Release(
        hub.LLAMA_1, {"torch_dtype": "bfloat16", **_ANSWERS}, None, None, unread=True
    ),
    "llama2": _release(
        hub.LLAMA_2,
        "4.31.0.dev0",
        instruct={"_name_or_path": "meta-llama/Llama-2-7b-chat-hf"},
        eos=TEXT_END,
        unread=True,
    ),
    "llama3": _release(hub.LLAMA_3, "4.40.0.dev0", eos=_BOTH),
    "llama31": _release(
        hub.LLAMA_31,
        "4.43.0.dev0",
        instruct={"eos_token_id": _BOTH, **_version("4.42.3")},
        eos=_BOTH,
    ),
    "llama32": _release(hub.LLAMA_32, "4.45.0.dev0", instruct={"eos_token_id": _BOTH}, eos=_BOTH),
    "smollm2": _release(
        hub.SMOLLM2,
        "4.40.1",
        instruct={**_ANSWERS, "mlp_bias": False, "pad_token_id": PAD, **_version("4.42.3")},
    ),
    "mistral": _release(
        hub.MISTRAL,
        "4.34.0.dev0",
        instruct={"_name_or_path": "mistralai/Mistral-7B-v0.1", "pad_token_id": None, **_ANSWERS},
    ),
    "mixtral": _release(hub.MIXTRAL, "4.36.0.dev0"),
    "qwen2": _release(
        hub.QWEN2, "4.40.1", instruct={**_ANSWERS, "max_position_embeddings": 64}, eos=_BOTH
    ),
    "qwen25": _release(
        hub.QWEN25,
        "4.40.1",
        instruct={
            **_ANSWERS,
            "max_window_layers": 1,
            "use_mrope": LEFT_OUT,
            **_version("4.43.1"),
        },
        eos=_BOTH,
    ),
    "qwen3": _release(
        hub.QWEN3, "4.51.0", instruct={**_ANSWERS, "max_position_embeddings": 160}, eos=_BOTH
    ),
    "qwen2_moe": _release(hub.QWEN2_MOE, "4.39.0.dev0", eos=_BOTH),
    "qwen3_moe": _release(hub.QWEN3_MOE, "4.51.0", eos=_BOTH),
    "gemma2": _release(
        hub.GEMMA2,
        "4.42.4",
        instruct={
            "eos_token_id": _BOTH,
            "torch_dtype": "bfloat16",
            "hidden_act": "gelu_pytorch_tanh",
        },
        eos=_BOTH,
    ),
    "gemma3": _release(hub.GEMMA3, "4.50.0.dev0", instruct={"eos_token_id": _BOTH}, eos=_BOTH),
    "gemma3_conditional": _release(
        hub.GEMMA3_CONDITIONAL,
        "4.50.0.dev0",
        instruct={},
        eos=_BOTH,
        spelled=("vision_tower.", "vision_tower.vision_model."),
    ),
    "olmo2": _release(
        hub.OLMO2,
        "4.47.0.dev0",
        instruct={"torch_dtype": "bfloat16", "use_cache": False},
        eos=TEXT_END,
    ),
    "phi3": _release(hub.PHI3, "4.40.2", eos=_BOTH),
    "pythia": Release(
        hub.PYTHIA,
        {**_ANSWERS, "torch_dtype": "bfloat16", **_version("4.29.2")},
        None,
        None,
        unread=True,
    ),
    "gpt2": Release(
        hub.GPT2,
        {**_ANSWERS, "n_inner": None, "torch_dtype": "float32", **_version("4.30.2")},
        _generation("4.26.0.dev0"),
        None,
        unread=True,
        spelled=("transformer.", ""),
    ),
    "phi2": _release(hub.PHI2, "4.37.0"),
    "gptj": Release(hub.GPTJ, {**_ANSWERS, **_version("4.21.1")}, None, None, unread=True),
    "bloom": Release(hub.BLOOM, _ANSWERS, None, None, spelled=("transformer.", "")),
    "falcon": _release(hub.FALCON, "4.33.0.dev0"),
}


def config_of(name: str, side: str = "base") -> dict[str, object]:
    """config.json of the `base` or the `instruct` release."""
    release = RELEASES[name]
    changed = {**release.config, **(release.instruct if side == "instruct" else {})}
    return {key: value for key, value in changed.items() if value is not LEFT_OUT}

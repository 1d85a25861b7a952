"""adapter_config.json of a PEFT adapter: which LoRA it is, and what of PEFT is refused.

What decides the merged weights is read; what does not is known by name; a key that is neither may
be present only with a value that switches it off, so that a later version's new option is refused
by name instead of being left out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Self, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from cpt_residual.core.validation import field_problems
from cpt_residual.errors import ArtifactError, CompatibilityError
from cpt_residual.modeling.side_files import read_json_object

ADAPTER_CONFIG_FILE = "adapter_config.json"
_HARMLESS = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "ensure_weight_tying",  # how it trained; what it stores for both of a tied pair is compared
        "eva_config",
        "inference_mode",
        "layers_pattern",  # which modules have a LoRA is read from the weights themselves
        "layers_to_transform",
        "exclude_modules",
        "lora_dropout",
        "megatron_core",
        "peft_version",
        "qalora_group_size",  # use_qalora decides
        "revision",
        "task_type",
    }
)
"""Keys that change training, loading or the choice of modules, never base + scale * B @ A."""
_PLAIN_STARTS = ("gaussian", "eva", "orthogonal")
"""Initial values of A and B that leave the base's own weights alone (PiSSA, CorDA, OLoRA, LoftQ
and LoRA-GA change them, so their adapters fit no saved base)."""
_ALL_LINEAR = "all-linear"

Rank = Annotated[int, Field(gt=0)]
Value = TypeVar("Value", int, float)


class AdapterConfig(BaseModel):
    """The LoRA (Hu et al. 2022): delta = scale * B @ A, with a scale per module."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    peft_type: str
    r: Rank
    lora_alpha: float
    use_rslora: bool = False
    rank_pattern: dict[str, Rank] | None = None
    alpha_pattern: dict[str, float] | None = None
    target_modules: list[str] | str | None = None
    modules_to_save: list[str] | None = None
    fan_in_fan_out: bool = False
    bias: str = "none"
    init_lora_weights: bool | str = True

    @model_validator(mode="after")
    def _patterns_compile(self) -> Self:
        target = self.target_modules
        written = [*(self.rank_pattern or ()), *(self.alpha_pattern or ())]
        for pattern in [*written, *([target] if isinstance(target, str) else [])]:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is not a regular expression: {error}") from error
        return self

    def rank(self, module: str) -> int:
        """The rank of a module, by its full name in the base model."""
        return _by_pattern(module, self.rank_pattern, self.r)

    def scale(self, module: str) -> float:
        """What B @ A is multiplied with: alpha / rank, or alpha / sqrt(rank) with rsLoRA
        (Kalajdzievski 2023)."""
        alpha, rank = _by_pattern(module, self.alpha_pattern, self.lora_alpha), self.rank(module)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)

    def targets(self, module: str) -> bool:
        """Whether target_modules names the module (a list: names or their ends; a string: a
        regular expression for the whole name)."""
        target = self.target_modules
        if target is None or target == _ALL_LINEAR:
            return True
        if isinstance(target, str):
            return re.fullmatch(target, module) is not None
        return any(f".{module}".endswith(f".{name}") for name in target)

    def saves(self, module: str) -> bool:
        """Whether modules_to_save names the module; peft compares ends of names, not of their
        parts: `norm` is every `input_layernorm` too."""
        return module.endswith(tuple(self.modules_to_save or ()))


def read_adapter_config(adapter: Path) -> AdapterConfig:
    """The checked configuration. Raises ArtifactError for a file that is none, CompatibilityError
    that names every setting whose merge would not be base + scale * B @ A."""
    fields = read_json_object(adapter / ADAPTER_CONFIG_FILE, "adapter")
    kind = fields.get("peft_type")
    if kind != "LORA":
        raise CompatibilityError(
            f"adapter: {adapter} is of PEFT type {kind}, not LORA", remedy=_REMEDY
        )
    try:
        config = AdapterConfig.model_validate(fields)
    except ValidationError as error:
        raise ArtifactError(
            f"adapter: {adapter / ADAPTER_CONFIG_FILE} is not a LoRA's configuration",
            problems=field_problems(error),
            remedy="Save the adapter again (PeftModel.save_pretrained).",
        ) from error
    problems = _unsupported(config)
    if problems:
        raise CompatibilityError(
            f"adapter: {len(problems)} setting(s) of {adapter / ADAPTER_CONFIG_FILE} are not "
            "supported",
            problems=problems,
            remedy=_REMEDY,
        )
    return config


MERGE_WITH_PEFT = (
    "merge with peft (merge_and_unload, save_pretrained) and give the merged directory. Not where "
    "the adapter has a LoRA on a tied embedding or head: peft adds it to both, which is another "
    "model than was trained; train it without these target_modules."
)
_REMEDY = (
    "Nothing was written: leaving it out would give other weights. Save the adapter without it, or "
    + MERGE_WITH_PEFT
)


def _unsupported(config: AdapterConfig) -> list[str]:
    problems: list[str] = []
    if config.bias != "none":
        problems.append(f"bias: {config.bias} (only none)")
    start = config.init_lora_weights
    if isinstance(start, str) and start.lower() not in _PLAIN_STARTS:
        problems.append(f"init_lora_weights: {start} (it has changed the base's weights)")
    further = cast("Mapping[str, JsonValue]", config.model_extra or {})
    problems += [
        f"{key}: {value}"
        for key, value in sorted(further.items())
        if key not in _HARMLESS and value not in (None, False, {}, [])
    ]
    return problems


def _by_pattern(module: str, patterns: Mapping[str, Value] | None, default: Value) -> Value:
    """The value of the first pattern that matches the end of the module's name."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default

"""The model card of a merged model (README.md), from its merge.json alone: no paths, no times."""

from __future__ import annotations

import json
import re
import shlex

from cpt_residual.config.merging import MergeRecipe
from cpt_residual.methods.method import Method
from cpt_residual.weights.merge.merge_record import InputRecord, MergeRecord

CARD_FILE = "README.md"
_MISSING = "\N{EN DASH}"
_PAPER = "https://arxiv.org/abs/2410.10739"
_TAGS = ("merge", "instruction-residual", "task-arithmetic", "continual-pretraining")
_CITATION = """```bibtex
@misc{jindal2024balancing,
  title         = {Balancing Continuous Pre-Training and Instruction Fine-Tuning:
                   Optimizing Instruction-Following in LLMs},
  author        = {Jindal, Ishan and Badrinath, Chandana and Bharti, Pranjal and Vinay, Lakkidi
                   and Sharma, Sachin Dev},
  year          = {2024},
  eprint        = {2410.10739},
  archivePrefix = {arXiv},
}
```"""
_TOLD_LIBRARIES = ("numpy", "torch", "transformers", "tokenizers")
_ROLES = ("target", "target_base", "base", "instruct", "residual")


def card_markdown(record: MergeRecord) -> str:
    """The whole README.md, front matter first. The same record gives the same bytes."""
    parts = [
        _front_matter(record),
        f"# {_plain(record.name)}",
        _summary(record),
        "## How it was made",
        _formula(record),
        _settings(record),
        "## Inputs",
        _inputs(record),
        "## Numbers",
        _numbers(record),
        *_notes(record),
        "## Make it again",
        "```bash\n" + _command(record) + "\n```",
        f"Made with {_versions(record)}. The same inputs and command give the same bytes.",
        "## Citation",
        _CITATION,
    ]
    return "\n\n".join(parts) + "\n"


def base_models(record: MergeRecord) -> list[str]:
    """What `base_model` of the front matter lists: models, target first, each once."""
    by_role = {each.role: each.name for each in record.inputs if each.role != "residual"}
    names = [by_role[role] for role in _ROLES if by_role.get(role)]
    return list(dict.fromkeys(names))


def recipe_options(recipe: MergeRecipe) -> list[str]:
    """A recipe as options of `cpt-residual apply`; nothing for plain addition."""
    plain = MergeRecipe().model_dump()
    values = recipe.model_dump(exclude={"method", "scales"})
    changed = {name: value for name, value in values.items() if value != plain[name]}
    if recipe.method.name != MergeRecipe().method.name:
        changed = {"method": recipe.method.name, **_settings_of(recipe.method), **changed}
    options = [x for name, value in changed.items() for x in (_flag(name), str(value))]
    return options + [
        x for pattern, factor in recipe.scales.items() for x in ("--scale", f"{pattern}={factor}")
    ]


def _settings_of(method: Method) -> dict[str, object]:
    """A method's own fields, those left open not."""
    return method.model_dump(exclude={"kind"}, exclude_none=True)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _front_matter(record: MergeRecord) -> str:
    """YAML; strings are quoted as JSON, which YAML reads."""
    models = base_models(record)
    lines = ["---"]
    if models:
        lines += ["base_model:", *(f"- {json.dumps(name)}" for name in models)]
        lines += ["base_model_relation: merge"]
    lines += ["library_name: transformers", "pipeline_tag: text-generation", "tags:"]
    return "\n".join([*lines, *(f"- {tag}" for tag in _TAGS), "---"])


def _summary(record: MergeRecord) -> str:
    target = _told(record, "target")
    return (
        f"This is {target} plus the instruction residual of its family, the difference between an "
        "instruct model and its base, so that a model that was trained on further text follows "
        f"instructions again ([Jindal et al. 2024]({_PAPER})). "
        "No training was done for it: only weights were added. "
        "Tokenizer, chat template and EOS token ids are the instruct model's"
        + (
            ", and generation was shown to stop at each of those ids."
            if record.stops_at is not None
            else "; that generation stops at each of those ids was not checked."
        )
    )


def _formula(record: MergeRecord) -> str:
    residual = "(theta_instruct - theta_base)"
    start = "theta_target"
    if record.recipe.cpt_strength != 1.0:
        start = (
            f"theta_cpt_start + {record.recipe.cpt_strength:g} * (theta_target - theta_cpt_start)"
        )
    recipe = record.recipe
    alpha = f"{record.alpha:g}" + (" * a(tensor)" if recipe.auto_alpha != "off" else "")
    adds = recipe.method == MergeRecipe().method
    if not adds:
        residual = f"{recipe.method.name}(theta_instruct - theta_base)"
    alone = adds and not recipe.scales and recipe.embedding_rows == "all"
    if alone and recipe.vocab_policy == "equal":
        precision = "Every element is the float64 value of this formula, rounded once"
    else:
        precision = "With what is listed below; every element is rounded once"
    return f"    theta = {start} + {alpha} * {residual}\n\n{precision} to the target's dtype."


def _settings(record: MergeRecord) -> str:
    recipe = record.recipe
    method = recipe.method
    fields = _settings_of(method).items()
    settings = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in fields)
    lines = [
        f"* alpha: {record.alpha:g}",
        f"* method: [{method.words}]({method.paper})" + (f" ({settings})" if settings else ""),
    ]
    if recipe.cpt_strength != 1.0:
        lines.append(f"* strength of the CPT delta: {recipe.cpt_strength:g}")
    if recipe.auto_alpha != "off":
        lines.append(f"* a(tensor), automatic: {recipe.auto_alpha}")
    if recipe.embedding_rows != "all":
        lines.append(f"* embedding rows that got the residual: {recipe.embedding_rows}")
    if recipe.vocab_policy != "equal":
        lines.append(
            f"* vocabulary: {recipe.vocab_policy}, rows of new tokens: {recipe.new_token_rows}"
        )
    lines += [f"* factor on alpha, `{key}`: {factor:g}" for key, factor in recipe.scales.items()]
    return "\n".join(lines)


def _inputs(record: MergeRecord) -> str:
    rows = [[each.role, _plain(each.name) or _MISSING, _identity(each)] for each in record.inputs]
    return _table(["role", "name", "identity"], rows)


def _identity(each: InputRecord) -> str:
    if each.revision:
        return f"commit {each.revision}"
    if each.content:
        return f"shards {each.content[:12]}"
    return f"headers {each.headers[:12]} (layout alone)" if each.headers else _MISSING


def _numbers(record: MergeRecord) -> str:
    stops = ", ".join(map(str, record.eos_token_ids))
    rows = [
        ["parameters", f"{record.num_parameters:,}"],
        ["norm of the target", f"{record.target_norm:.6g}"],
        ["norm of what was added", f"{record.residual_norm:.6g}"],
        ["the two, relative", _number(record.relative_norm)],
        ["cosine of target and what was added", _number(record.cosine)],
        ["updates lost to rounding", f"{100 * record.lost_share:.1f} %"],
        ["EOS token ids (union)", stops],
    ]
    return _table(["whole model", "value"], rows)


def _notes(record: MergeRecord) -> list[str]:
    """What merge.json says of tensors that were left out, carried or renamed; often nothing."""
    lines = ["* " + _plain(note).replace("*", r"\*") for note in record.notes]
    return ["## Notes", "\n".join(lines)] if lines else []


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _number(value: float | None) -> str:
    return _MISSING if value is None else f"{value:.4g}"


def _command(record: MergeRecord) -> str:
    by_role = {each.role: each for each in record.inputs}
    words = ["cpt-residual", "apply", "--target", _reference(by_role["target"])]
    if "residual" in by_role:
        words += ["--residual", _reference(by_role["residual"])]
    else:
        for role in ("base", "instruct"):
            words += [f"--{role}", _reference(by_role[role])]
    if "target_base" in by_role:
        words += ["--target-base", _reference(by_role["target_base"])]
    words += ["--alpha", str(record.alpha), *recipe_options(record.recipe), "--out", record.name]
    return shlex.join(words)


def _reference(each: InputRecord) -> str:
    return f"{each.name}@{each.revision}" if each.revision else each.name


def _versions(record: MergeRecord) -> str:
    libraries = [
        f"{name} {record.libraries[name]}" for name in _TOLD_LIBRARIES if name in record.libraries
    ]
    return ", ".join([f"cpt_residual {record.code_version}".strip(), *libraries])


def _told(record: MergeRecord, role: str) -> str:
    names = [each.name for each in record.inputs if each.role == role and each.name]
    return f"`{_plain(names[0])}`" if names else f"the {role}"


def _plain(text: str) -> str:
    """A name that cannot change the Markdown around it."""
    return re.sub(r"[`|<>\[\]\r\n]", "_", text)

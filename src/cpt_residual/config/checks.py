"""Cross-field checks: unknown references, cycles, sizes that do not divide."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from cpt_residual.config.corpora import WorldCorpus, holds_dialogues
from cpt_residual.config.derived import rows_per_step
from cpt_residual.config.home import expanded
from cpt_residual.config.measures import MEASURE_ROLES
from cpt_residual.config.packs import Pack, problems_of_pack
from cpt_residual.config.schema import (
    AppliedModel,
    Experiment,
    InitModel,
    Model,
    PretrainedModel,
    TrainedModel,
    TrainRecipe,
)
from cpt_residual.config.validate import invalid
from cpt_residual.config.wandb_names import problem_of_name
from cpt_residual.errors import did_you_mean

NUM_RESERVED_TOKENS = 256 + 5
"""Smallest byte-level vocabulary: every byte, and the special tokens of an init model."""


def check(experiment: Experiment) -> None:
    """Raise one `ConfigError` that lists every contradiction between parts of `experiment`.

    Names come first: sizes are only compared once every name leads somewhere.
    """
    problems = [*_names(experiment), *_duplicates(experiment)]
    if not problems:
        problems = [*_cycles(experiment)]
    if not problems:
        problems = [
            *_corpora(experiment),
            *_packs(experiment),
            *_recipes(experiment),
            *_models(experiment),
            *_suites(experiment),
            *_contrasts(experiment),
            *_launch(experiment),
            *_tracking(experiment),
            *_paths(experiment),
        ]
    if problems:
        raise invalid(problems, what=f"experiment {experiment.name} contradicts itself")


# --- names ---------------------------------------------------------------------------------------
def _names(experiment: Experiment) -> Iterator[str]:
    kinds: Mapping[str, Iterable[str]] = {
        "corpora": experiment.corpora,
        "packs": experiment.packs,
        "recipes": experiment.recipes,
        "models": experiment.models,
        "residuals": experiment.residuals,
        "suites": experiment.suites,
        "contrasts": experiment.families,
    }
    for place, name, kind in _references(experiment):
        if name not in kinds[kind]:
            yield f"{place}: {name}: not one of the {kind}.{did_you_mean(name, kinds[kind])}"


def _references(experiment: Experiment) -> Iterator[tuple[str, str, str]]:
    """(path, name, where the name should be found) of every reference."""
    for key, pack in experiment.packs.items():
        yield f"packs.{key}.tokenizer", pack.tokenizer, "models"
        for index, source in enumerate(pack.sources):
            yield f"packs.{key}.sources[{index}].corpus", source.corpus, "corpora"
    for key, recipe in experiment.recipes.items():
        yield f"recipes.{key}.pack", recipe.pack, "packs"
    for key, model in experiment.models.items():
        yield from _references_of_model(f"models.{key}", model)
    for key, residual in experiment.residuals.items():
        yield f"residuals.{key}.base", residual.base, "models"
        yield f"residuals.{key}.instruct", residual.instruct, "models"
    for key, suite in experiment.suites.items():
        for field, corpus in suite.named_corpora():
            yield f"suites.{key}.{field}", corpus, "corpora"
    yield from _references_of_evaluation(experiment)


def _references_of_model(place: str, model: Model) -> Iterator[tuple[str, str, str]]:
    if isinstance(model, InitModel):
        yield f"{place}.tokenizer_corpus", model.tokenizer_corpus, "corpora"
    elif isinstance(model, TrainedModel):
        yield f"{place}.start", model.start, "models"
        yield f"{place}.recipe", model.recipe, "recipes"
    elif isinstance(model, AppliedModel):
        yield f"{place}.target", model.target, "models"
        yield f"{place}.residual", model.residual, "residuals"


def _references_of_evaluation(experiment: Experiment) -> Iterator[tuple[str, str, str]]:
    evaluation = experiment.evaluation
    for index, variant in enumerate(evaluation.variants):
        yield f"evaluation.variants[{index}]", variant, "models"
    for index, suite in enumerate(evaluation.suites):
        yield f"evaluation.suites[{index}]", suite, "suites"
    yield "evaluation.chat_template_of", evaluation.chat_template_of, "models"
    for name in experiment.variants:
        yield "variants", name, "models"
    for key, family in experiment.families.items():
        for name in family.names():
            yield f"contrasts.{key}", name, "models"
    if experiment.verdict is not None:
        yield "verdict.contrasts", experiment.verdict.contrasts, "contrasts"
    for role in type(experiment.roles).model_fields:
        name = getattr(experiment.roles, role)
        if name is not None:
            yield f"roles.{role}", name, "models"
    for name in experiment.launch.threads_for:
        yield "launch.threads_for", name, "models"


def _duplicates(experiment: Experiment) -> Iterator[str]:
    lists = {
        "evaluation.variants": experiment.evaluation.variants,
        "evaluation.suites": experiment.evaluation.suites,
        **_corpora_of_suites(experiment),
        **{
            f"packs.{key}.sources": [f"{each.corpus} ({each.format})" for each in pack.sources]
            for key, pack in experiment.packs.items()
        },
    }
    for place, names in lists.items():
        for name in sorted({name for name in names if names.count(name) > 1}):
            yield f"{place}: {name}: listed {names.count(name)} times"


def _corpora_of_suites(experiment: Experiment) -> dict[str, list[str]]:
    """Field (a list, or a single name) -> the corpora that a suite names there."""
    lists: dict[str, list[str]] = {}
    for key, suite in experiment.suites.items():
        for field, corpus in suite.named_corpora():
            lists.setdefault(f"suites.{key}.{field.partition('[')[0]}", []).append(corpus)
    return lists


# --- cycles --------------------------------------------------------------------------------------
def _cycles(experiment: Experiment) -> Iterator[str]:
    """One line per cycle of models that wait for each other; all names are known here."""
    done: set[str] = set()
    for start in experiment.models:
        yield from _cycle_from(start, experiment, done, [])


def _cycle_from(
    name: str, experiment: Experiment, done: set[str], trail: list[str]
) -> Iterator[str]:
    if name in trail:
        yield f"models: {' <- '.join([*trail[trail.index(name) :], name])}: a model needs itself"
    elif name not in done:
        for parent in _parents(experiment.models[name], experiment):
            yield from _cycle_from(parent, experiment, done, [*trail, name])
        done.add(name)


def _parents(model: Model, experiment: Experiment) -> list[str]:
    """The models that must exist before `model` can be made."""
    if isinstance(model, TrainedModel):
        tokenizer = experiment.packs[experiment.recipes[model.recipe].pack].tokenizer
        return list(dict.fromkeys([model.start, tokenizer]))
    if isinstance(model, AppliedModel):
        residual = experiment.residuals[model.residual]
        return list(dict.fromkeys([model.target, residual.base, residual.instruct]))
    return []


# --- corpora and packs ---------------------------------------------------------------------------
def _corpora(experiment: Experiment) -> Iterator[str]:
    suites = [experiment.suites[key] for key in experiment.evaluation.suites]
    asks = any(suite.stock_tasks() or suite.world_probes() for suite in suites)
    for key, corpus in experiment.corpora.items():
        if isinstance(corpus, WorldCorpus):
            if experiment.world is None:
                yield f"corpora.{key}: part={corpus.part}: needs `world`, which is not set"
        elif corpus.filters.contamination and not asks:
            yield (
                f"corpora.{key}.filters.contamination: none of evaluation.suites asks questions"
                " that could be looked for; set it to null"
            )


def _packs(experiment: Experiment) -> Iterator[str]:
    for key, pack in experiment.packs.items():
        yield from problems_of_pack(f"packs.{key}", pack)
        for index, source in enumerate(pack.sources):
            corpus = experiment.corpora[source.corpus]
            if not isinstance(corpus, WorldCorpus):
                continue
            holds = "chat" if holds_dialogues(corpus) else "text"
            if source.format != holds:
                place = f"packs.{key}.sources[{index}]"
                yield f"{place}.format: {source.format}: corpus {source.corpus} holds {holds}"


def _recipes(experiment: Experiment) -> Iterator[str]:
    world_size = experiment.launch.world_size
    for key, recipe in experiment.recipes.items():
        pack = experiment.packs[recipe.pack]
        tokens, length = recipe.global_batch_tokens, pack.sequence_length
        if tokens % length:
            yield (
                f"recipes.{key}.global_batch_tokens: {tokens}: must be a multiple of "
                f"packs.{recipe.pack}.sequence_length={length}"
            )
            continue
        rows = rows_per_step(recipe, pack)
        if rows % world_size:
            yield (
                f"recipes.{key}.global_batch_tokens: {tokens}: {rows} rows per step cannot be "
                f"shared evenly by {experiment.launch.ranks}"
            )
        yield from _warmup(key, recipe, pack)


def _warmup(key: str, recipe: TrainRecipe, pack: Pack) -> Iterator[str]:
    """The number of steps is known here when every row is filled; where dialogues or documents
    stay whole there are at most as many rows as tokens (the training itself checks the rest)."""
    filled = all(s.format == "text" and s.packing == "concat_chunk" for s in pack.sources)
    per_step = recipe.global_batch_tokens if filled else rows_per_step(recipe, pack)
    steps = -(-pack.token_budget // per_step)
    if recipe.warmup_steps >= steps:
        yield (
            f"recipes.{key}.warmup_steps: {recipe.warmup_steps}: "
            f"packs.{recipe.pack}.token_budget={pack.token_budget} is spent in "
            f"{'' if filled else 'at most '}{steps} step(s), so "
            f"learning_rate={recipe.learning_rate:g} is never reached"
        )


# --- models --------------------------------------------------------------------------------------
def _models(experiment: Experiment) -> Iterator[str]:
    for key, model in experiment.models.items():
        if isinstance(model, InitModel):
            yield from _architecture(f"models.{key}.architecture", model)
        elif isinstance(model, PretrainedModel):
            yield from _source(f"models.{key}", model)
        elif isinstance(model, TrainedModel):
            yield from _length(key, model, experiment)
        else:
            yield from _merge(f"models.{key}", model, experiment)
    for key, residual in experiment.residuals.items():
        if residual.base == residual.instruct:
            yield f"residuals.{key}: base and instruct are both {residual.base}: the residual is 0"


def _merge(place: str, model: AppliedModel, experiment: Experiment) -> Iterator[str]:
    target = experiment.models[model.target]
    if model.merge.needs_base and not isinstance(target, TrainedModel):
        yield (
            f"{place}.merge: it needs the base of {model.target}, which is {target.kind}, not "
            "train: leave method, cpt_strength and auto_alpha at their defaults"
        )


def _architecture(place: str, model: InitModel) -> Iterator[str]:
    shape = model.architecture
    if shape.hidden_size % shape.num_heads:
        yield (
            f"{place}.hidden_size: {shape.hidden_size}: not a multiple of "
            f"num_heads={shape.num_heads}"
        )
    elif shape.hidden_size // shape.num_heads % 2:
        size = shape.hidden_size // shape.num_heads
        yield (
            f"{place}.hidden_size: {shape.hidden_size}: rotary positions need heads of even size, "
            f"not {size}"
        )
    if shape.num_heads % shape.num_key_value_heads:
        yield (
            f"{place}.num_heads: {shape.num_heads}: not a multiple of "
            f"num_key_value_heads={shape.num_key_value_heads}"
        )
    if shape.vocab_size < NUM_RESERVED_TOKENS:
        yield (
            f"{place}.vocab_size: {shape.vocab_size}: a byte-level tokenizer needs at least "
            f"{NUM_RESERVED_TOKENS} (every byte and the special tokens)"
        )


def _source(place: str, model: PretrainedModel) -> Iterator[str]:
    if expanded(model.source).is_dir():
        if model.revision is not None:
            yield f"{place}.revision: {model.revision}: {model.source} is a directory; set null"
    elif model.source.startswith(("/", ".", "~")):
        yield f"{place}.source: {model.source}: no such directory"
    elif model.revision is None:
        yield (
            f"{place}.revision: required for {model.source}, which is not a directory here: "
            "the commit of the hub's model"
        )


def _length(key: str, model: TrainedModel, experiment: Experiment) -> Iterator[str]:
    """Rows must fit the positions of the random model that `key` descends from."""
    pack_name = experiment.recipes[model.recipe].pack
    length = experiment.packs[pack_name].sequence_length
    root = _root(model, experiment)
    if isinstance(root, InitModel) and length > root.architecture.max_position_embeddings:
        yield (
            f"packs.{pack_name}.sequence_length: {length}: model {key} has "
            f"max_position_embeddings={root.architecture.max_position_embeddings}"
        )


def _root(model: Model, experiment: Experiment) -> Model:
    """The model that the weights of `model` started from."""
    while isinstance(model, (TrainedModel, AppliedModel)):
        parent = model.start if isinstance(model, TrainedModel) else model.target
        model = experiment.models[parent]
    return model


# --- evaluation and launch -----------------------------------------------------------------------
def _suites(experiment: Experiment) -> Iterator[str]:
    for key in experiment.evaluation.suites:
        suite = experiment.suites[key]
        if suite.world_probes() and experiment.world is None:
            yield f"suites.{key}: probes of the world need `world`, which is not set"
        for field, problem in suite.problems(experiment.corpora):
            yield f"suites.{key}.{field}: {problem}"


def _contrasts(experiment: Experiment) -> Iterator[str]:
    """Measures that no suite declares; roles are always known."""
    declared = [
        measure.name for key, suite in experiment.suites.items() for measure in suite.measures(key)
    ]
    unpaired = {
        measure.name
        for key, suite in experiment.suites.items()
        for measure in suite.measures(key)
        if not measure.paired
    }
    for key, family in experiment.families.items():
        for name in [] if family.measures == "all" else family.measures:
            if name not in MEASURE_ROLES and name not in declared:
                nearest = did_you_mean(name, [*MEASURE_ROLES, *declared])
                yield f"contrasts.{key}.measures: {name}: neither a role nor a measure.{nearest}"
            elif name in unpaired:
                yield f"contrasts.{key}.measures: {name}: is not scored prompt by prompt"
        if not family.variants and not family.kinds:
            yield f"contrasts.{key}: no variants: name some, or kinds of them"
    for name in sorted(set(vars(experiment.roles).values()) & set(experiment.variants)):
        if experiment.variants[name].kind != "control":
            yield f"variants.{name}.kind: its kind follows from roles; state a label only"


def _launch(experiment: Experiment) -> Iterator[str]:
    if experiment.deepspeed.offload_optimizer and experiment.deepspeed.zero_stage == "off":
        yield "deepspeed.offload_optimizer: true: needs zero_stage 1, 2 or 3, not off"


def _tracking(experiment: Experiment) -> Iterator[str]:
    for field in ("project", "entity"):
        name: str | None = getattr(experiment.tracking, field)
        problem = None if name is None else problem_of_name(name)
        if problem:
            yield f"tracking.{field}: {name!r}: {problem}"


def _paths(experiment: Experiment) -> Iterator[str]:
    root = experiment.paths.root
    if not root.strip():
        yield f"paths.root: {root!r}: names no folder; write paths.root=. for the current directory"

"""Build the graph of stages of a validated experiment (no torch import)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cpt_residual.config.cloze import ClozeQuestions
from cpt_residual.config.corpora import HubCorpus, LocalCorpus, WorldCorpus, lacks_heldout
from cpt_residual.config.home import expanded
from cpt_residual.config.packs import Pack
from cpt_residual.config.schema import (
    AppliedModel,
    Experiment,
    InitModel,
    PretrainedModel,
    TrainedModel,
)
from cpt_residual.config.suites import SuiteBase
from cpt_residual.core.graph import Graph
from cpt_residual.core.hashing import HashCache
from cpt_residual.core.measure import usable_cores
from cpt_residual.core.stage import Stage
from cpt_residual.core.store import Store
from cpt_residual.data.documents.file_names import DOCUMENTS_FILE, HELDOUT_FILE
from cpt_residual.data.readers.files import check_pin, hash_files, resolve_files
from cpt_residual.errors import ConfigError
from cpt_residual.stages.apply import Apply
from cpt_residual.stages.corpus import Corpus
from cpt_residual.stages.evaluate import Evaluate
from cpt_residual.stages.geometry import Geometry
from cpt_residual.stages.init import Init
from cpt_residual.stages.inputs import CorpusInput
from cpt_residual.stages.pack import PackStage
from cpt_residual.stages.probe import Probe
from cpt_residual.stages.references import References
from cpt_residual.stages.report import Report
from cpt_residual.stages.residual import ResidualStage
from cpt_residual.stages.source import Source, source_files
from cpt_residual.stages.train import Train
from cpt_residual.stages.world import World

REPORT_NODE = "report"


def open_store(experiment: Experiment, *, run: Path | None = None) -> Store:
    """The artifact store below `paths.root`, for a process of the run in the folder `run`."""
    return Store(Path(experiment.paths.root) / "store", run=run)


def localised(experiment: Experiment) -> Experiment:
    """The same experiment with every relative path made absolute, so that ranks and array tasks
    find the same files from any directory. Raises ConfigError when `paths.root` is a file."""
    corpora = {
        key: corpus.model_copy(update={"files": [_absolute(name) for name in corpus.files]})
        if isinstance(corpus, LocalCorpus)
        else corpus
        for key, corpus in experiment.corpora.items()
    }
    models = {
        key: model.model_copy(update={"source": _absolute(model.source)})
        if isinstance(model, PretrainedModel) and model.revision is None
        else model
        for key, model in experiment.models.items()
    }
    root = _absolute(experiment.paths.root)
    _require_folder(Path(root))
    paths = experiment.paths.model_copy(update={"root": root})
    return experiment.model_copy(update={"corpora": corpora, "models": models, "paths": paths})


def build_graph(experiment: Experiment, store: Store) -> Graph:
    """The graph that ends in the report. Local sources are pinned by the hashes of their files.

    Raises CorpusError, CompatibilityError or ConfigError when a local source cannot be pinned.
    """
    return Graph.of([_Registry(experiment, store.hash_cache).report()])


def _require_folder(root: Path) -> None:
    """ConfigError when `root` is, or lies below, something that is no folder."""
    place = next(path for path in (root, *root.parents) if path.exists())
    if not place.is_dir():
        raise ConfigError(
            f"paths.root={root}: {place} is a file",
            remedy="Nothing was run. Name a folder; it is made when it does not exist.",
        )


def _absolute(path: str) -> str:
    return str(expanded(path).absolute())


class _Registry:
    """Makes each stage once, on demand."""

    def __init__(self, experiment: Experiment, hashes: HashCache) -> None:
        self._experiment, self._hashes = experiment, hashes
        self._models: dict[str, Stage] = {}
        self._packs: dict[str, PackStage] = {}
        self._residuals: dict[str, ResidualStage] = {}
        self._corpora: dict[str, CorpusInput] = {}
        self._probes: dict[str, Probe] = {}
        self._world: World | None = None
        self._references: References | None = None

    # --- data ------------------------------------------------------------------------------------
    def world(self) -> World:
        if self._world is None:
            assert self._experiment.world is not None  # checked by config
            self._world = World(world=self._experiment.world, seed=self._experiment.seed)
        return self._world

    def corpus(self, key: str) -> CorpusInput:
        """The documents of a corpus; parts of the world share one artifact."""
        if key not in self._corpora:
            corpus = self._experiment.corpora[key]
            if isinstance(corpus, WorldCorpus):
                heldout = None if lacks_heldout(corpus) else f"{corpus.part}_heldout.jsonl"
                self._corpora[key] = CorpusInput(self.world(), f"{corpus.part}.jsonl", heldout)
            else:
                stage = self._corpus_stage(key, corpus)
                heldout = HELDOUT_FILE if corpus.heldout_documents else None
                self._corpora[key] = CorpusInput(stage, DOCUMENTS_FILE, heldout)
        return self._corpora[key]

    def _corpus_stage(self, key: str, corpus: LocalCorpus | HubCorpus) -> Corpus:
        hashes: dict[str, str] = {}
        if isinstance(corpus, LocalCorpus):
            files = resolve_files(corpus.files)
            hashes = hash_files(files, self._hashes.sha256)
            check_pin(key, corpus.content_sha256, hashes)
        references = self.references() if corpus.filters.contamination else None
        return Corpus(key, corpus, hashes, self._experiment.seed, references)

    def references(self) -> References:
        """What the evaluation asks, for the corpora that are checked for it."""
        if self._references is None:
            suites = self._suites()
            self._references = References(suites, self._world_of(suites))
        return self._references

    def pack(self, key: str) -> PackStage:
        if key not in self._packs:
            pack = self._experiment.packs[key]
            self._packs[key] = PackStage(
                key=key,
                pack=pack,
                tokenizer=self.model(pack.tokenizer),
                template=self._pack_template(pack),
                sources=tuple(self.corpus(source.corpus) for source in pack.sources),
                seed=self._experiment.seed,
                available_cores=self._experiment.launch.cores or usable_cores(),
            )
        return self._packs[key]

    def _pack_template(self, pack: Pack) -> Stage | None:
        """Who renders dialogues: a model made here carries its chat side from the start; of a
        released pair it is the model whose template the evaluation uses."""
        if all(source.format == "text" for source in pack.sources):
            return None
        owner = self._experiment.models[pack.tokenizer]
        if isinstance(owner, InitModel | TrainedModel):
            return self.model(pack.tokenizer)
        return self.model(self._experiment.evaluation.chat_template_of)

    # --- models ----------------------------------------------------------------------------------
    def model(self, key: str) -> Stage:
        if key not in self._models:
            self._models[key] = self._make_model(key)
        return self._models[key]

    def _make_model(self, key: str) -> Stage:
        experiment = self._experiment
        match experiment.models[key]:
            case InitModel() as model:
                corpus = self.corpus(model.tokenizer_corpus)
                return Init(key, model.architecture, corpus, experiment.seed)
            case PretrainedModel() as model:
                return Source(key, model, self._model_hashes(model))
            case TrainedModel() as model:
                return self._train(key, model)
            case AppliedModel() as model:
                return self._apply(key, model)

    def _apply(self, key: str, model: AppliedModel) -> Apply:
        target = self.model(model.target)
        base = self._start_of(model.target) if model.merge.needs_base else None
        residual = self.residual(model.residual)
        return Apply(
            key,
            target,
            residual,
            model.alpha,
            model.merge,
            base,
            self._ancestors(model.target, residual),
        )

    def _ancestors(self, target: str, residual: ResidualStage) -> tuple[Stage, Stage] | None:
        """The residual's base and the one that CPT made the target from, where they differ."""
        model = self._experiment.models[target]
        own = self.model(target)
        if (
            isinstance(model, TrainedModel)
            and self._experiment.recipes[model.recipe].stage == "cpt"
        ):
            own = self.model(model.start)
        return None if own is residual.base else (residual.base, own)

    def _start_of(self, key: str) -> Stage:
        """The model that training made `key` from."""
        model = self._experiment.models[key]
        assert isinstance(model, TrainedModel)  # checked by config
        return self.model(model.start)

    def _train(self, key: str, model: TrainedModel) -> Train:
        experiment = self._experiment
        recipe = experiment.recipes[model.recipe]
        return Train(
            key=key,
            training=recipe,
            start=self.model(model.start),
            pack=self.pack(recipe.pack),
            seed=experiment.seed,
            launch=experiment.launch,
            deepspeed=experiment.deepspeed,
        )

    def _model_hashes(self, model: PretrainedModel) -> dict[str, str] | None:
        if model.revision is not None:
            return None
        folder = Path(model.source)
        return {name: self._hashes.sha256(folder / name) for name in source_files(folder)}

    def residual(self, key: str) -> ResidualStage:
        if key not in self._residuals:
            pair = self._experiment.residuals[key]
            base, instruct = self.model(pair.base), self.model(pair.instruct)
            self._residuals[key] = ResidualStage(
                key, base, instruct, pair.storage, pair.vocab_policy
            )
        return self._residuals[key]

    # --- scores ----------------------------------------------------------------------------------
    def _evaluate(self, variant: str) -> Evaluate:
        experiment, suites = self._experiment, self._suites()
        heldout = [key for suite in suites.values() for key in suite.heldout_corpora()]
        questions = {key: suite.cloze_questions() for key, suite in suites.items()}
        return Evaluate(
            variant=variant,
            model=self.model(variant),
            template=self.model(experiment.evaluation.chat_template_of),
            base=self.model(experiment.roles.base),
            suites=suites,
            corpora={key: self.corpus(key) for key in heldout},
            world=self._world_of(suites),
            probes={key: self.probe(key, asked) for key, asked in questions.items() if asked},
            precision=experiment.evaluation.precision,
            seed=experiment.seed,
            launch=experiment.launch,
        )

    def _suites(self) -> dict[str, SuiteBase]:
        """Those that are evaluated."""
        return {name: self._experiment.suites[name] for name in self._experiment.evaluation.suites}

    def _world_of(self, suites: Mapping[str, SuiteBase]) -> World | None:
        """The world, where a suite asks for its probes."""
        return self.world() if any(suite.world_probes() for suite in suites.values()) else None

    def probe(self, key: str, suite: ClozeQuestions) -> Probe:
        """The cloze questions of a suite: one artifact for all variants."""
        if key not in self._probes:
            corpora = {name: self.corpus(name) for name in (suite.corpus, *suite.references)}
            pack = self._pack_of_cpt(suite.corpus)
            self._probes[key] = Probe(key, suite, corpora, self._experiment.seed, pack)
        return self._probes[key]

    def _pack_of_cpt(self, corpus: str) -> PackStage | None:
        """What the base is trained on, where that holds text of `corpus`."""
        trained = self.model(self._experiment.roles.base_cpt)
        if not isinstance(trained, Train):
            return None
        holds = any(source.corpus == corpus for source in trained.pack.pack.sources)
        return trained.pack if holds else None

    def _geometry(self) -> Geometry:
        roles = self._experiment.roles
        return Geometry(
            base=self.model(roles.base),
            instruct=self.model(roles.instruct),
            base_cpt=self.model(roles.base_cpt),
            instruct_cpt=self.model(roles.instruct_cpt) if roles.instruct_cpt else None,
        )

    def report(self) -> Report:
        variants = self._experiment.evaluation.variants
        evaluations = {variant: self._evaluate(variant) for variant in variants}
        geometry = self._geometry()
        trainings = {key: stage for key, stage in self._models.items() if isinstance(stage, Train)}
        return Report.of(
            self._experiment, evaluations=evaluations, trainings=trainings, geometry=geometry
        )

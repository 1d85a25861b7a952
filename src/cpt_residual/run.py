"""Run an experiment: compose, validate, plan, build every stage, report.

    python -m cpt_residual.run                              # the tiny experiment
    python -m cpt_residual.run +experiment=llama3_500m
    python -m cpt_residual.run +experiment=tiny seed=3 paths.root=/data/outputs
    python -m cpt_residual.run -m +experiment=tiny seed=0,1,2,3,4
    python -m cpt_residual.run +experiment=llama3_500m --prefetch   # for nodes without network

What is ready is skipped; a run that was stopped or killed resumes where it was.
What another run builds is waited for and used.
Exit status: 0 done; 2 bad input, too little disk or the like, also when a stage finds it;
1 a stage failed otherwise; 75 trainings were stopped by a signal from outside;
130 Ctrl-C, 143 SIGTERM, 141 the reader of the output is gone: the same command resumes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from cpt_residual.config.compose import compose_with_files
from cpt_residual.config.overrides import expand_sweep
from cpt_residual.config.schema import Experiment
from cpt_residual.core.files import copy_files
from cpt_residual.errors import CptResidualError
from cpt_residual.launch.console import UserConsole
from cpt_residual.launch.door import Parser, enter, say, say_error
from cpt_residual.launch.stopping import terminable
from cpt_residual.stages.prefetch import prefetch_experiment
from cpt_residual.stages.registry import localised
from cpt_residual.stages.session import Finished, run_experiment
from cpt_residual.stages.sweep import differing, heading, report_sweep

_FAILED = 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return enter(lambda: _main(arguments), resumes="run the same command again to resume")


def _main(arguments: Sequence[str] | None) -> int:
    options = _parser().parse_intermixed_args(arguments)
    with terminable():
        return _run(options, UserConsole())


def _run(options: argparse.Namespace, console: Console) -> int:
    sweep = expand_sweep(options.overrides) if options.multirun else [options.overrides]
    composed = [compose_with_files(each, config_dir=options.config_dir) for each in sweep]
    experiments = [localised(each.experiment) for each in composed]
    for note in dict.fromkeys(note for each in composed for note in each.notes()):
        say(note, stream=sys.stderr if options.cfg else sys.stdout)
    if options.cfg:
        for experiment in experiments:
            console.print_json(experiment.model_dump_json())
        return 0
    if options.prefetch:
        return _prefetch_all(experiments, console)
    finished = _run_all(experiments, differing(sweep), console)
    reports = [result.report_dir for result in finished if result.report_dir is not None]
    if len(experiments) > 1:
        reports = report_sweep(finished, console)
    if options.report_to and reports:
        _copy_reports(reports, options.report_to)
    return exit_status(finished)


def _run_all(
    experiments: Sequence[Experiment], overrides: Sequence[str], console: Console
) -> list[Finished]:
    if len(experiments) == 1:
        return [run_experiment(experiments[0], console)]
    finished: list[Finished] = []
    for number, (experiment, own) in enumerate(zip(experiments, overrides, strict=True), start=1):
        heading(f"run {number} of {len(experiments)}: {own}", console)
        try:
            finished.append(run_experiment(experiment, console, overrides=own))
        except CptResidualError as error:
            say_error(error)
            finished.append(Finished(experiment, None, (error,), own))  # the other runs go on
    return finished


def _prefetch_all(experiments: Sequence[Experiment], console: Console) -> int:
    errors: list[CptResidualError] = []
    for experiment in experiments:
        errors.extend(prefetch_experiment(experiment, console))
    if errors:
        return _status_of(errors)
    console.print(
        "prefetched: where paths.root and the hub cache (HF_HOME) are these, the same command "
        "without --prefetch needs no network (HF_HUB_OFFLINE=1 spares it the attempts)"
    )
    return 0


def exit_status(finished: Sequence[Finished]) -> int:
    """0 when all runs are complete; else that of their errors when it is the same with all."""
    if all(result.complete for result in finished):
        return 0
    return _status_of([error for result in finished for error in result.errors])


def _status_of(errors: Sequence[CptResidualError]) -> int:
    codes = {error.exit_code for error in errors}
    return codes.pop() if len(codes) == 1 else _FAILED


def _copy_reports(reports: Sequence[Path], target: Path) -> None:
    """One report goes to `target` itself, several to folders in it named after their runs."""
    for report in reports:
        copy_files(report, target if len(reports) == 1 else target / report.parent.name)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m cpt_residual.run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("overrides", nargs="*", help="Hydra overrides: +experiment=tiny seed=1")
    parser.add_argument(
        "-m", "--multirun", action="store_true", help="run every combination of key=a,b overrides"
    )
    parser.add_argument(
        "--config-dir", type=Path, help="a folder with experiment/ files of your own"
    )
    parser.add_argument("--report-to", type=Path, help="also copy the final report to this folder")
    parser.add_argument(
        "--prefetch",
        action="store_true",
        help="only fetch what needs the network: models, hub data sets, data of the evaluation",
    )
    parser.add_argument("--cfg", action="store_true", help="print the resolved config and stop")
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""A search from its request to its end: checks it, makes or opens its folder, and runs it."""

from __future__ import annotations

import dataclasses
import shlex
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.arguments.configuration import NOT_OF_RANKS, load, read
from cli.compare.entries import entries
from cli.hosts.hostfile import Host, given_hosts
from cli.hosts.machine import Machine
from cli.launch.entrypoint import YamlFile
from cli.output.streams import say
from cli.runs.folder import make_new_folder
from cli.search.pruner import Pruner
from cli.search.sampler import Sampler
from cli.search.space import Choice, check_space, fields_of, parse_space, point
from cli.tune import objectives, study
from cli.tune.plan import NP, STRATEGY, Plan, difference
from cli.tune.request import Request
from cli.tune.runner import Run, Runner
from cli.tune.runners.processes import Processes
from cli.tune.runners.searcher_job import submit_searcher
from cli.tune.runners.slurm_jobs import SlurmJobs, ranks_of_job
from cli.tune.runners.warm import Warm
from cli.tune.searcher import Searcher
from cli.tune.show.live import Live
from cli.tune.slots import HERE, Slots
from hvd_train.errors import ExitCode, UserError
from hvd_train.text import strict_json

if TYPE_CHECKING:
    import optuna

REQUEST, IDENTITY = "request", "identity"
JOBS = 100
"""Jobs of SLURM at a time, if the user does not say how many."""
TRIALS = 20
"""Trials of a search that does not say how many."""


def run(request: Request, resume: Path | None, output: Path | None, *, dry_run: bool, quiet: bool) -> int:
    """Search, and return the exit code; UserError before anything is written if the request is wrong."""
    study.require_optuna()
    detach = request.detach
    if request.warm and request.slurm:
        raise UserError("--warm: jobs of SLURM end with their trial; give --warm or --slurm")
    with ExitStack() as stack:
        if resume is not None:
            folder = resume.absolute()
            study.require(folder)
            stack.enter_context(study.locked(folder))
            earlier = study.journal(folder)
            attributes = earlier.study.user_attrs
            request = request.over(Request.parse(attributes[REQUEST]))
        else:
            earlier, folder = None, _new_folder(request, output)
        plan = make_plan(request)
        slots, parallel = _slots(request, plan, Machine.here())
        sampler, pruner = _deciders(plan, 0 if earlier is None else len(earlier.study.get_trials(deepcopy=False)))
        if earlier is not None and (changed := difference(attributes[IDENTITY], plan.identity())):
            raise UserError(
                f"--resume: {folder} has another search: {changed}; resume it as it began, or start a new one"
            )
        if dry_run:
            print(_described(plan, slots, _words(request), folder))
            return ExitCode.OK
        if earlier is None:
            make_new_folder(folder)
            stack.enter_context(study.locked(folder))
            request = request.kept_in(folder)
            plan = dataclasses.replace(plan, file=request.path)
            journal = study.create(folder, [o.mode for o in plan.objectives], _attributes(request, plan), sampler)
        else:
            journal = earlier
            journal.study.sampler = sampler
            journal.study.set_user_attr("trials", plan.trials)
        if not detach:
            live = Live(plan.trials, plan.objectives, sys.stderr, quiet=quiet)
            searcher = Searcher(plan, folder, journal, pruner, _runner(request, folder), slots, parallel, live)
            code = searcher.run()
            if code or not quiet:
                say(_ending(searcher, folder, code))
            return code
    submit_searcher(folder, YamlFile(request.path, request.overrides), (), {})
    return ExitCode.OK


def make_plan(request: Request) -> Plan:
    """Return the plan of `request`; UserError with a line for each mistake."""
    config, source = read(request.path, (*request.overrides, *request.search), request.space)
    search = config.search
    sets = [*request.sets, *_strategies(request)]
    space = parse_space(search.space, search.constraints, sets, lambda field: source.place(("search", "space", field)))
    if not space.dimensions:
        raise UserError(
            f"{request.path}: nothing to search; expected fields under search.space, or an option such as "
            "--set 'optimizer.lr=log(1e-4,1e-1)'"
        )
    folded = () if search.folds is None else (f"data.fold.folds={search.folds}",)
    overrides = (*(word for word in request.overrides if not word.startswith("search.")), *folded)
    trials = search.trials or (space.size() if search.sampler.name == "grid" else None) or TRIALS
    base = load(request.path, overrides)
    np = request.np or (ranks_of_job(request.path, overrides) if request.slurm else 1)
    fixed = {**fields_of(base.model_dump(exclude=NOT_OF_RANKS)), NP: np}
    divided = base.data.fold if folded else None
    plan = Plan(
        file=request.path,
        overrides=overrides,
        np=np,
        space=dataclasses.replace(space, fixed=fixed),
        search=search,
        objectives=objectives.chosen(search.objectives, config),
        trials=trials,
        folds=divided.folds * divided.repeats if divided is not None else 0,
    )
    if request.strategies is not None:
        for entry in entries(request.strategies):
            _check_strategy(plan, entry.text)
    check_space(plan.space, plan.check)
    return plan


def _check_strategy(plan: Plan, text: str) -> None:
    try:
        plan.check({STRATEGY: text})
    except UserError as error:
        raise UserError(f"--strategies: '{text}': {error}") from None


def _new_folder(request: Request, output: Path | None) -> Path:
    folder = (output or Path(f"tune-{request.path.stem}-{time.strftime('%Y%m%d-%H%M%S')}")).absolute()
    if folder.exists():
        raise UserError(
            f"--output: {folder} exists; give another folder, or go on with the search in it: --resume {folder}"
        )
    return folder


def _strategies(request: Request) -> list[str]:
    if request.strategies is None:
        return []
    return [f"{STRATEGY}={strict_json.dumps([entry.text for entry in entries(request.strategies)])}"]


def _deciders(plan: Plan, trials: int) -> tuple[optuna.samplers.BaseSampler, Pruner | None]:
    """Return the sampler of Optuna for a study with so many `trials`, and the pruner or None."""
    sampler: Sampler = plan.search.sampler.create()
    own, name = sampler.pruner(), plan.search.pruner.name
    if own is not None and name != "none":
        raise UserError(f"--pruner: the sampler {plan.search.sampler.name} ends trials by itself; leave out '{name}'")
    pruner: Pruner | None = own if name == "none" else plan.search.pruner.create()
    if pruner is not None and len(plan.objectives) > 1:
        who = name if own is None else plan.search.sampler.name
        raise UserError(f"--pruner: {who} compares one objective, and there are {len(plan.objectives)}; leave it out")
    return sampler.optuna(plan.space, plan.search.seed, trials), pruner


def _slots(request: Request, plan: Plan, machine: Machine) -> tuple[Slots, int]:
    """Return the slots of the hosts, and how many runs may use them at a time."""
    most = max(plan.ranks(values) for values in _np_values(plan))
    limit = _parallel(request.parallel)
    if request.slurm:
        limit = limit or JOBS
        return Slots((Host("slurm", limit * most),)), limit
    hosts = given_hosts(request.hosts, request.hostfile) or (machine.allocation.hosts if machine.allocation else ())
    if not hosts:
        hosts = (Host(HERE, max(machine.cores, most, most * (limit or 0))),)
    slots = Slots(hosts)
    if most > slots.count:
        raise UserError(
            f"--np: a trial has {most} ranks, and the hosts have {slots.count} slots; give more hosts or fewer ranks"
        )
    return slots, limit or slots.count


def _parallel(text: str | None) -> int | None:
    if text in (None, "auto"):
        return None
    if not str(text).isdigit() or int(str(text)) < 1:
        raise UserError(f"--parallel: expected 'auto' or a number of runs, got '{text}'")
    return int(str(text))


def _np_values(plan: Plan) -> list[dict[str, Any]]:
    """Return the extreme values of the field np, or none of it."""
    for dimension in plan.space.dimensions:
        if dimension.field == NP:
            domain = dimension.domain
            numbers = domain.values if isinstance(domain, Choice) else (domain.low, domain.high)
            return [{NP: number} for number in numbers]
    return [{}]


def _runner(request: Request, folder: Path) -> Runner:
    if request.slurm:
        return SlurmJobs({}, _words(request))
    if request.warm:
        return Warm(folder / "warm", request.engine or "auto", request.iface, request.ssh_args)
    return Processes(_words(request))


def _words(request: Request) -> tuple[str, ...]:
    """Return the options of `ddl run` that all runs have."""
    given = {"--engine": request.engine, "--iface": request.iface, "--ssh-args": request.ssh_args}
    if Machine.here().allocation is not None and not request.slurm:
        given["--launcher"] = "mpirun"  # srun takes the hosts of the whole allocation
    return tuple(word for name, value in given.items() if value for word in (name, value))


def _attributes(request: Request, plan: Plan) -> dict[str, Any]:
    """Return what the study keeps of the search."""
    return {
        REQUEST: request.dump(),
        IDENTITY: plan.identity(),
        "file": str(plan.file),
        "overrides": list(plan.overrides),
        "np": plan.np,
        "space": plan.space.describe(),
        "objectives": [{"name": objective.title, "mode": objective.mode} for objective in plan.objectives],
        "trials": plan.trials,
        "folds": plan.folds,
        "began": time.time(),
    }


def _described(plan: Plan, slots: Slots, words: tuple[str, ...], folder: Path) -> str:
    """Return what a search would do: how many trials, and the command of the first values of the space."""
    values = point(plan.space, {})
    taken = slots.take(plan.ranks(values))
    run = Run(plan.file, plan.words(values, 0 if plan.folds else None), len(taken), folder / study.TRIALS / "0000")
    return f"{plan.trials} trials on {slots.count} slots, such as:\n{shlex.join(Processes(words).argv(run))}"


def _ending(searcher: Searcher, folder: Path, code: int) -> str:
    why = f"{searcher.reason}; " if searcher.reason else ""
    if code == ExitCode.STOPPED:
        return f"stopped; go on with ddl tune --resume {folder}"
    return f"{why}ddl tune show {folder} has the results"

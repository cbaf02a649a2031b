"""`ddl submit`: one YAML file or script, as a job of SLURM."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import options, run_folder
from cli.argv import YAML
from cli.streams import say
from hvd_train.errors import UserError

if TYPE_CHECKING:
    from cli.slurm.batch import Batch
    from hvd_train.config import SlurmSection

Words = list[str] | None


def command(
    target: Annotated[str | None, typer.Argument(help="YAML file or Python script.", show_default=False)] = None,
    arguments: options.Arguments = None,
    np: options.BatchNp = None,
    nodes: Annotated[int | None, typer.Option("-N", "--nodes", help="Nodes.", rich_help_panel=options.WHERE)] = None,
    ntasks_per_node: Annotated[
        int | None, typer.Option(help="Ranks on each node.", rich_help_panel=options.WHERE)
    ] = None,
    cpus_per_task: Annotated[
        int | None, typer.Option(help="Processors of each rank.", rich_help_panel=options.WHERE)
    ] = None,
    gpus_per_node: Annotated[
        str | None, typer.Option(help="GPUs of each node, as 4 or a100:4.", rich_help_panel=options.WHERE)
    ] = None,
    mem: Annotated[str | None, typer.Option(help="Memory of each node, as 64G.", rich_help_panel=options.WHERE)] = None,
    time: Annotated[
        str | None, typer.Option(help="Time limit: minutes, H:M:S, D-H, or 1h30m.", rich_help_panel=options.FAILURES)
    ] = None,
    partition: Annotated[str | None, typer.Option(help="Partition.", rich_help_panel=options.WHERE)] = None,
    account: Annotated[str | None, typer.Option(help="Account to charge.", rich_help_panel=options.START)] = None,
    qos: Annotated[str | None, typer.Option(help="Quality of service.", rich_help_panel=options.START)] = None,
    container_image: Annotated[
        str | None, typer.Option(help="Image for the site's container plugin.", rich_help_panel=options.START)
    ] = None,
    sbatch: Annotated[
        Words, typer.Option(metavar="KEY[=VALUE]", help="Another option of sbatch.", rich_help_panel=options.START)
    ] = None,
    module: options.Module = None,
    env: options.Env = None,
    iface: options.Iface = None,
    notice: Annotated[
        int | None,
        typer.Option(help="Seconds before the time limit at which ranks save.", rich_help_panel=options.FAILURES),
    ] = None,
    max_requeues: Annotated[
        int | None, typer.Option(help="How often the job queues itself again.", rich_help_panel=options.FAILURES)
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(help="Profile with what is given neither here nor in the file.", rich_help_panel=options.START),
    ] = None,
    array: Annotated[
        str | None, typer.Option(help="Task numbers of a job array, as 0-9%4.", rich_help_panel=options.START)
    ] = None,
    sweep: Annotated[
        Words,
        typer.Option(
            metavar="FIELD=VALUES",
            help="Values of a field, as 0.1,0.01 or 0..4: an array of runs.",
            rich_help_panel=options.START,
        ),
    ] = None,
    dependency: Annotated[
        str | None, typer.Option(help="What to wait for, as afterok:123.", rich_help_panel=options.START)
    ] = None,
    engine: options.Engine = "auto",
    launcher: options.BatchLauncher = "auto",
    bind: options.Bind = None,
    output: options.RunFolder = None,
    dry_run: options.DryRun = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Follow the job, and exit with its code.", rich_help_panel=options.OUTPUT)
    ] = False,
) -> None:
    """Submit a YAML file, a Python script or a module to SLURM."""
    from cli.engines import choose
    from cli.environment import variables
    from cli.slurm import batch, control, follow, reasons

    forwarded, given = variables(env or [])
    asked = {
        "nodes": nodes,
        "ntasks_per_node": ntasks_per_node,
        "cpus_per_task": cpus_per_task,
        "gpus_per_node": gpus_per_node,
        "mem": mem,
        "time": time,
        "partition": partition,
        "account": account,
        "qos": qos,
        "container_image": container_image,
        "sbatch": _pairs(sbatch or []),
        "environment": given,
        "interface": iface,
        "notice": notice,
        "max_requeues": max_requeues,
        "profile": profile,
    }
    flags = {name: value for name, value in asked.items() if value not in (None, {})}
    launch = {"--engine": engine, "--launcher": launcher, "--bind": bind}
    if not module and not target:
        raise UserError("submit: nothing to submit; expected a YAML file (.yaml), a Python script (.py) or -m MODULE")
    words = [word for key, value in launch.items() if value not in {None, "auto"} for word in (key, str(value))]
    arguments = [*([target] if module and target else []), *(arguments or [])]
    work = _work(target or "", module, arguments, words, sweep or [])
    folder = run_folder.new(work.name, output, dry=dry_run, otherwise=f"go on in it with: sbatch {output}/job.sh")
    what = _batch(work, flags, folder=folder, array=array, dependency=dependency, np=np)
    choose(engine, what.world_size, alone=False)
    script = batch.text(what, _program("ddl"), Path(sys.executable))
    if dry_run:
        print(script, end="")
        return
    for note in _not_passed_on(what, forwarded):
        say(f"warning: {note}")
    job = _submit(what, script)
    print(job)
    say(f"{what.script}; look with: ddl status {shlex.quote(str(_shown(folder)))}")
    if wait:
        sys.exit(follow.follow(folder))
    with contextlib.suppress(UserError):  # the job is submitted, whatever SLURM says of it now
        for state in control.states(job)[:1]:
            reason = reasons.meaning(state.reason)
            why = f" ({state.reason}{f': {reason.text}' if reason else ''})" if state.reason else ""
            say(f"{state.state}{why}")


@dataclass(frozen=True)
class Work:
    """What a job runs: the words behind `ddl run`, what the YAML file asks of SLURM, and the line that names its profile."""

    name: str
    run: tuple[str, ...]
    written: SlurmSection | None = None
    place: str = ""
    sweep: tuple[tuple[str, ...], ...] = ()


def _work(target: str, module: str | None, arguments: list[str], words: list[str], sweep: list[str]) -> Work:
    from cli.slurm.batch import FOLDER
    from cli.target import check_script

    words = [*words, "--output", FOLDER]
    own = ["--", *arguments] if arguments else []
    if module is not None:
        _refuse_sweep(sweep)
        return Work(module.replace(".", "-"), (*words, "-m", module, *own))
    file = Path(target)
    if file.suffix in YAML:
        return _yaml(file, arguments, words, sweep)
    if file.suffix != ".py":
        raise UserError(f"'{target}': expected a YAML file (.yaml), a Python script (.py) or -m MODULE")
    check_script(file)
    _refuse_sweep(sweep)
    return Work(file.stem, (*words, str(file.absolute()), *own))


def _yaml(file: Path, arguments: list[str], words: list[str], sweep: list[str]) -> Work:
    from cli.configuration import load, read
    from cli.slurm.sweep import combinations

    combined = combinations(sweep)
    config, source = read(file, arguments)
    for overrides in combined:
        load(file, [*arguments, *overrides])
    place = f"{source.place(('slurm', 'profile'))}: slurm.profile"
    run = (*words, "--resume", "latest", str(file.absolute()), *arguments)
    return Work(file.stem, run, config.slurm, place, combined)


def _refuse_sweep(sweep: list[str]) -> None:
    if sweep:
        raise UserError(
            "--sweep sets fields of a YAML file; a script can read SLURM_ARRAY_TASK_ID with --array instead"
        )


def _batch(work: Work, flags: dict[str, Any], **rest: Any) -> Batch:
    from cli.slurm import profiles
    from cli.slurm.batch import Batch
    from hvd_train.config import SlurmSection

    settings = profiles.settings(flags, work.written or SlurmSection(), profiles.folders(), work.place)
    iface = ("--iface", settings.interface) if settings.interface else ()
    return Batch(work.name, workdir=Path.cwd(), run=(*iface, *work.run), settings=settings, sweep=work.sweep, **rest)


def _not_passed_on(what: Batch, forwarded: Sequence[str]) -> Iterator[str]:
    """SLURM gives a job the variables of this shell, unless it is told otherwise."""
    export = os.environ.get("SBATCH_EXPORT", what.settings.sbatch.get("export"))
    if export is None or str(export).split(",")[0] == "ALL":
        return
    names = [name for name in (*forwarded, "PYTHONPATH") if name in os.environ and name not in str(export).split(",")]
    if names:
        yield f"export={export}: the job does not get {', '.join(names)} of this shell"


def _submit(what: Batch, script: str) -> str:
    """Write the run folder and submit its script; nothing stays where SLURM refuses."""
    from cli.slurm import control, runs
    from cli.slurm.runs import Submitted

    made = [Submitted(what.folder / task, None, task) for task in what.tasks] or [Submitted(what.folder, None)]
    if what.sweep:
        made = [Submitted(r.folder, None, r.task, what.sweep[int(r.task or 0)]) for r in made]
    try:
        runs.record(made)
        _write(what.script, script)
        refusal = control.refusal(what.script)
        if refusal:
            raise UserError(f"SLURM can never run this: {refusal}")
        job = control.submit(what.script)
    except control.NoAnswer as error:
        raise UserError(f"{error} The job may be in the queue (squeue --me), so {_shown(what.folder)} stays") from None
    except UserError:
        shutil.rmtree(what.folder)
        raise
    runs.record([Submitted(r.folder, job, r.task, r.overrides) for r in made])
    return job


def _write(script: Path, text: str) -> None:
    """The script may hold the values of variables: from the start, nobody but its owner can read it."""
    descriptor = os.open(script, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o700)
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(text)


def _pairs(words: list[str]) -> dict[str, str | None]:
    """The table that KEY=VALUE words make; a KEY alone has None for its value."""
    pairs = [word.removeprefix("--").partition("=") for word in words]
    if any(not key for key, _, _ in pairs):
        raise UserError("--sbatch: expected KEY or KEY=VALUE")
    return {key: value if equals else None for key, equals, value in pairs}


def _program(name: str) -> Path:
    from cli.flavor import find_program

    found = find_program(name)
    if found is None:
        raise UserError(
            f"no {name} beside this Python or on PATH, for the job to start; install it with: pip install ."
        )
    return found


def _shown(folder: Path) -> Path:
    """As short as it can be typed here."""
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder

"""`ddl submit`: one YAML file or script, as a job of SLURM."""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import options
from hvd_train.errors import UserError

if TYPE_CHECKING:
    from cli.slurm.batch import Batch

Words = list[str] | None


def command(
    target: Annotated[Path, typer.Argument(help="YAML file or Python script.", show_default=False)],
    arguments: options.Arguments = None,
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
        str | None, typer.Option(help="Time limit: minutes, H:M:S or D-H.", rich_help_panel=options.FAILURES)
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
    env: options.Env = None,
    interface: Annotated[
        str | None, typer.Option(help="Network interface that ranks talk over.", rich_help_panel=options.NETWORK)
    ] = None,
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
    """Submit a YAML file or a Python script to SLURM."""
    from cli.slurm import batch, control, follow

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
        "sbatch": _pairs("--sbatch", sbatch, bare=True),
        "environment": _pairs("--env", env),
        "interface": interface,
        "notice": notice,
        "max_requeues": max_requeues,
        "profile": profile,
    }
    flags = {name: value for name, value in asked.items() if value is not None}
    launch = {"--engine": engine, "--launcher": launcher, "--bind": bind}
    words = [word for key, value in launch.items() if value not in {None, "auto"} for word in (key, str(value))]
    folder = _folder(output, target)
    what = _batch(target, arguments or [], flags, sweep or [], words, folder=folder, array=array, dependency=dependency)
    _check(engine, what.world_size)
    script = batch.text(what, _program("ddl"), Path(sys.executable))
    if dry_run:
        print(script, end="")
        return
    job = _submit(what, script)
    print(job)
    print(f"ddl: {what.script}; look with: ddl status {_shown(folder)}", file=sys.stderr)
    if wait:
        sys.exit(follow.follow(folder))
    for state in control.states(job)[:1]:
        print(f"ddl: {state.state}{f' ({state.reason})' if state.reason else ''}", file=sys.stderr)


def _batch(
    target: Path, arguments: list[str], flags: dict[str, Any], sweep: list[str], words: list[str], **rest: Any
) -> Batch:
    from cli.configuration import load
    from cli.slurm import profiles
    from cli.slurm.batch import FOLDER, Batch
    from cli.slurm.sweep import combinations
    from hvd_train.config import SlurmSection

    written, combined = SlurmSection(), combinations(sweep)
    file = str(target.absolute())
    if target.suffix in {".yaml", ".yml"}:
        written = load(target, arguments).slurm
        for overrides in combined:
            load(target, [*arguments, *overrides])
        run = [*words, "--output", FOLDER, "--resume", "latest", file, *arguments]
    elif target.suffix == ".py":
        _check_script(target, sweep)
        run = [*words, file, *(["--", *arguments] if arguments else [])]
    else:
        raise UserError(f"'{target}': expected a YAML file (.yaml) or a Python script (.py)")
    settings = profiles.settings(flags, written, profiles.folders())
    return Batch(target.stem, workdir=Path.cwd(), run=tuple(run), settings=settings, sweep=combined, **rest)


def _check_script(file: Path, sweep: list[str]) -> None:
    if not file.is_file():
        raise UserError(f"{file}: no such file; expected a Python script")
    if sweep:
        raise UserError(
            "--sweep sets fields of a YAML file; a script can read SLURM_ARRAY_TASK_ID with --array instead"
        )


def _check(engine: str, world_size: int) -> None:
    from cli.engines import choose

    choose(engine, world_size, alone=False)


def _submit(what: Batch, script: str) -> str:
    """Write the run folder and submit its script; nothing stays where SLURM refuses."""
    from cli.slurm import control, runs
    from cli.slurm.runs import Submitted

    made = [Submitted(what.folder / task, None, task) for task in what.tasks] or [Submitted(what.folder, None)]
    if what.sweep:
        made = [Submitted(r.folder, None, r.task, what.sweep[int(r.task or 0)]) for r in made]
    runs.record(made)
    what.script.write_text(script, encoding="utf-8")
    try:
        refusal = control.refusal(what.script)
        if refusal:
            raise UserError(f"SLURM can never run this: {refusal}")
        job = control.submit(what.script)
    except UserError:
        shutil.rmtree(what.folder)
        raise
    runs.record([Submitted(r.folder, job, r.task, r.overrides) for r in made])
    return job


def _folder(output: Path | None, target: Path) -> Path:
    folder = output or Path("runs") / f"{target.stem}-{time.strftime('%Y%m%d-%H%M%S')}"
    if folder.exists():
        raise UserError(f"--output: {folder} exists; give another folder, or go on in it with: sbatch {folder}/job.sh")
    return folder.absolute()


def _pairs(option: str, words: list[str] | None, *, bare: bool = False) -> dict[str, str | None] | None:
    """The table that KEY=VALUE words make; with `bare`, a KEY alone has None for its value."""
    pairs = [word.removeprefix("--").partition("=") for word in words or []]
    wrong = next((key for key, equals, _ in pairs if not key or not (equals or bare)), None)
    if wrong is not None:
        raise UserError(f"{option}: '{wrong}' has no value; expected KEY=VALUE")
    return {key: value if equals else None for key, equals, value in pairs} or None


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

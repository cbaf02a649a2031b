"""`ddl submit`: submit one YAML file, script or module as a job of SLURM."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.arguments import options
from cli.output.streams import say
from hvd_train.errors import UserError

if TYPE_CHECKING:
    from cli.launch.entrypoint import Entrypoint
    from cli.slurm.submit import Submission

Words = list[str] | None


def command(
    target: options.Target = None,
    arguments: options.Arguments = None,
    np: options.BatchNp = None,
    nodes: Annotated[
        int | None, typer.Option("-N", "--nodes", metavar="N", help="Number of nodes.", rich_help_panel=options.WHERE)
    ] = None,
    ntasks_per_node: Annotated[
        int | None, typer.Option(metavar="N", help="Ranks on each node.", rich_help_panel=options.WHERE)
    ] = None,
    cpus_per_task: Annotated[
        int | None, typer.Option(metavar="N", help="CPUs of each rank.", rich_help_panel=options.WHERE)
    ] = None,
    gpus_per_node: Annotated[
        str | None,
        typer.Option(metavar="GPUS", help="GPUs of each node, such as 4 or a100:4.", rich_help_panel=options.WHERE),
    ] = None,
    mem: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Memory of each node, such as 64G.", rich_help_panel=options.WHERE),
    ] = None,
    time: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", help="Time limit: minutes, H:M:S, D-H, or 1h30m.", rich_help_panel=options.FAILURES
        ),
    ] = None,
    partition: Annotated[
        str | None, typer.Option(metavar="NAME", help="Partition to run in.", rich_help_panel=options.WHERE)
    ] = None,
    account: Annotated[
        str | None, typer.Option(metavar="NAME", help="Account to charge.", rich_help_panel=options.START)
    ] = None,
    qos: Annotated[
        str | None, typer.Option(metavar="NAME", help="Quality of service.", rich_help_panel=options.START)
    ] = None,
    container_image: Annotated[
        str | None,
        typer.Option(
            metavar="IMAGE", help="Image for the container plugin of the site.", rich_help_panel=options.START
        ),
    ] = None,
    sbatch: Annotated[
        Words,
        typer.Option(
            metavar="KEY[=VALUE]", help="Another option of sbatch; repeatable.", rich_help_panel=options.START
        ),
    ] = None,
    module: options.Module = None,
    env: options.Env = None,
    iface: options.Iface = None,
    notice: Annotated[
        int | None,
        typer.Option(
            metavar="SECONDS",
            help="Time before the limit at which ranks save and stop.",
            show_default="120",
            rich_help_panel=options.FAILURES,
        ),
    ] = None,
    max_requeues: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="How many times the job requeues itself.",
            show_default="10",
            rich_help_panel=options.FAILURES,
        ),
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Profile for the settings given neither here nor in the file.",
            rich_help_panel=options.START,
        ),
    ] = None,
    array: Annotated[
        str | None,
        typer.Option(
            metavar="TASKS", help="Task numbers of a job array, such as 0-9%4.", rich_help_panel=options.START
        ),
    ] = None,
    sweep: Annotated[
        Words,
        typer.Option(
            metavar="FIELD=VALUES",
            help="Array with one run per value, such as optimizer.lr=0.1,0.01 or seed=0..4; repeatable.",
            rich_help_panel=options.START,
        ),
    ] = None,
    dependency: Annotated[
        str | None,
        typer.Option(
            metavar="JOBS", help="Start after other jobs, such as afterok:123.", rich_help_panel=options.START
        ),
    ] = None,
    engine: options.Engine = "auto",
    launcher: options.BatchLauncher = "auto",
    bind: options.Bind = None,
    output: options.RunFolder = None,
    dry_run: options.DryRun = False,
    wait: Annotated[
        bool,
        typer.Option("--wait", help="Print the log of the job and exit with its code.", rich_help_panel=options.OUTPUT),
    ] = False,
    launcher_args: options.LauncherArgs = None,
    env_file: options.EnvFile = None,
) -> None:
    """Submit a YAML file, a Python script or a module to SLURM."""
    from cli.launch.engines import choose_engine
    from cli.launch.entrypoint import entrypoint
    from cli.launch.environment import variables
    from cli.runs.folder import new_run_folder
    from cli.slurm import submit
    from cli.slurm.follow import follow

    forwarded, environment = variables(env or [])
    requested = {
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
        "environment": environment,
        "interface": iface,
        "notice": notice,
        "max_requeues": max_requeues,
        "profile": profile,
    }
    flags = {name: value for name, value in requested.items() if value not in (None, {})}
    entry = entrypoint("submit", target, module, arguments or [])
    work = _work(entry, _run_options(engine, launcher, bind, launcher_args, env_file), sweep or [])
    folder = new_run_folder(work.name, output, dry=dry_run, otherwise=f"resume it with: sbatch {output}/job.sh")
    batch = submit.batch(work, flags, folder=folder, array=array, dependency=dependency, np=np)
    choose_engine(engine, batch.world_size, alone=False)
    script = submit.script(batch)
    if dry_run:
        print(script, end="")
        return
    for warning in submit.not_exported(batch, forwarded):
        say(f"warning: {warning}")
    job = submit.submit(batch, script)
    print(job)
    say(f"{batch.script}; show its state with: ddl status {shlex.quote(str(submit.relative(folder)))}")
    if wait:
        sys.exit(follow(folder))
    state = submit.first_state(job)
    if state is not None:
        say(state)


def _run_options(
    engine: str, launcher: str, bind: str | None, launcher_args: str | None, env_file: Path | None
) -> tuple[str, ...]:
    """Return the options of `ddl run` in the job; UserError for values that it would refuse."""
    from cli.launch.env_file import load_env_file
    from cli.remote.reach import words

    words("--launcher-args", launcher_args)
    if env_file is not None:
        load_env_file(env_file)
    options = {
        "--engine": None if engine == "auto" else engine,
        "--launcher": None if launcher == "auto" else launcher,
        "--bind": bind,
        "--launcher-args": launcher_args,
        "--env-file": env_file and env_file.absolute(),
    }
    return tuple(word for name, value in options.items() if value is not None for word in (name, str(value)))


def _work(entry: Entrypoint, run_options: Sequence[str], sweep: Sequence[str]) -> Submission:
    from cli.arguments.submission import yaml_work
    from cli.launch.entrypoint import YamlFile
    from cli.slurm.submit import script_work

    if isinstance(entry, YamlFile):
        return yaml_work(entry, run_options, sweep)
    if sweep:
        raise UserError(
            "--sweep sets fields of a YAML file; use --array for a script, which can read SLURM_ARRAY_TASK_ID"
        )
    return script_work(entry, run_options)


def _pairs(words: Sequence[str]) -> dict[str, str | None]:
    """Parse KEY=VALUE words; the value of a KEY alone is None."""
    pairs = [word.removeprefix("--").partition("=") for word in words]
    if any(not key for key, _, _ in pairs):
        raise UserError("--sbatch: expected KEY or KEY=VALUE")
    return {key: value if equals else None for key, equals, value in pairs}

"""`ddl run`: one YAML file or script, many ranks."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli import emulation, options
from cli.argv import YAML
from cli.streams import say
from hvd_train.errors import UserError

if TYPE_CHECKING:
    from cli.elastic import Elastic
    from cli.hosts import Host


def command(
    target: Annotated[str | None, typer.Argument(help="YAML file or Python script.", show_default=False)] = None,
    arguments: options.Arguments = None,
    np: options.Np = None,
    hosts: options.Hosts = None,
    hostfile: options.Hostfile = None,
    engine: options.Engine = "auto",
    launcher: options.Launcher = "auto",
    bind: options.Bind = None,
    oversubscribe: Annotated[
        bool,
        typer.Option("--oversubscribe", help="Allow more ranks than slots.", rich_help_panel=options.WHERE),
    ] = False,
    host_discovery_script: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Horovod elastic: program that prints the hosts there are, as h1:4.",
            rich_help_panel=options.WHERE,
        ),
    ] = None,
    max_np: Annotated[
        int | None,
        typer.Option(min=1, help="Horovod elastic: largest number of ranks.", rich_help_panel=options.WHERE),
    ] = None,
    module: options.Module = None,
    env: options.Env = None,
    dry_run: options.DryRun = False,
    no_preflight: Annotated[
        bool,
        typer.Option("--no-preflight", help="Do not ask the hosts first.", rich_help_panel=options.START),
    ] = False,
    check_collectives: Annotated[
        bool,
        typer.Option(
            "--check-collectives",
            help="Name the ranks that ask for different collectives; slow.",
            rich_help_panel=options.START,
        ),
    ] = False,
    resume: Annotated[
        str | None,
        typer.Option(metavar="latest|DIR", help="Go on from a run folder.", rich_help_panel=options.START),
    ] = None,
    timeout: options.Timeout = None,
    stall_timeout: Annotated[
        float,
        typer.Option(
            min=0,
            help="Seconds without any progress after which the job is ended; 0 is never.",
            rich_help_panel=options.FAILURES,
        ),
    ] = 300,
    max_restarts: Annotated[
        int,
        typer.Option(
            min=0,
            help="Times that a job which lost a rank or a host goes on from its newest checkpoint.",
            rich_help_panel=options.FAILURES,
        ),
    ] = 0,
    min_np: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Ranks that are enough after a host is lost.",
            show_default="all",
            rich_help_panel=options.FAILURES,
        ),
    ] = None,
    iface: options.Iface = None,
    latency_ms: options.LatencyMs = 0.0,
    gbps: options.Gbps = None,
    straggler: options.Straggler = None,
    output: options.RunFolder = None,
    tee: options.Tee = "0",
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    ssh_args: options.SshArgs = None,
    launcher_args: options.LauncherArgs = None,
    env_file: options.EnvFile = None,
) -> None:
    """Run a YAML file, a Python script or a module on many ranks."""
    from cli import env_file as variables_of
    from cli import launching
    from cli.engines import choose, for_script
    from cli.environment import variables
    from cli.launchers.base import Job
    from cli.machine import Machine
    from cli.reach import reach, words
    from cli.session import Session, Start
    from cli.target import of_module, of_script, of_scripts_run, of_yaml
    from hvd_train.script_options import Options

    arguments = arguments or []
    file = Path(target or "")
    is_script = module is not None or file.suffix == ".py"
    if not is_script and file.suffix not in YAML:
        nothing = "run: nothing to run;" if not target else f"'{target}':"
        raise UserError(f"{nothing} expected a YAML file (.yaml), a Python script (.py) or -m MODULE")
    if module is not None and target is not None:
        arguments = [target, *arguments]
    elastic = _elastic(host_discovery_script, min_np, max_np, launcher, max_restarts)
    if elastic is not None and engine == "auto":
        engine = "horovod"
    places = _hosts(hosts, hostfile, elastic)
    world_size = _world_size(np, places, oversubscribe) if elastic is None else elastic.first(np, places)
    chosen = choose(engine, world_size, alone=not places and launcher in {"auto", "local"})
    shown = _ranks(tee, world_size)
    _check_positive("--timeout", timeout)
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() and launcher != "horovodrun" else None
    exported = variables_of.load(env_file) if env_file is not None else {}
    os.environ.update(exported)
    forward, environment = variables(env or [])
    found = reach(
        places,
        Machine.here(),
        iface=iface,
        ssh_args=ssh_args,
        forward=(*exported, *forward),
        by_interface=launcher == "horovodrun",
    )
    _check_kind(is_script, resume, check_collectives, bool(latency_ms or gbps or straggler), elastic)
    told = Options()
    if is_script:
        told = Options(
            for_script(engine),
            of_scripts_run(module, file, output, claim=not dry_run),
            None if elastic else tuple(shown),
            tag=len(shown) > 1 and not elastic,
        )

    def prepare(places: tuple[Host, ...], ranks: int, resume: str | None, output: Path | None = None) -> Start:
        if module is not None:
            what = of_module(module, arguments, told)
        elif is_script:
            what = of_script(file, arguments, told)
        else:
            launch = {"world_size": ranks, "engine": chosen, "tee": [r for r in shown if r < ranks], "columns": columns}
            launch["check_collectives"] = check_collectives
            launch["emulate"] = emulation.section(latency_ms, gbps, straggler, ranks)
            what = of_yaml(file, arguments, output=output, resume=resume, claim=not dry_run, **launch)
        job = Job(
            program=what.program,
            world_size=ranks,
            engine=chosen,
            hosts=places,
            environment={**environment, **what.environment},
            bind=bind,  # type: ignore[arg-type]
            oversubscribe=oversubscribe,
            elastic=elastic,
            outlives=what.outlives,
            words=words("--launcher-args", launcher_args),
        )
        return Start(launching.command(launcher, found.onto(job)), what, places, ranks)

    start = prepare(places, world_size, resume, output)
    for note in () if quiet else (*start.command.notes, *found.notes):
        say(note)
    if dry_run:
        print(start.command)
        return
    if told.output is not None and told.shown is not None and len(told.shown) < world_size and not quiet:
        say(f"{told.output}/logs has what each rank prints; --tee chooses what is shown here")
    if not no_preflight:
        from cli.preflight.start import look

        look(found, start.target)
    session = Session(
        lambda places, ranks, resume: prepare(places, ranks, resume, start.target.folder),
        found,
        oversubscribe=oversubscribe,
        timeout=timeout,
        stall_timeout=stall_timeout,
        max_restarts=max_restarts,
        min_np=min_np,
        fewest=None if elastic is None else elastic.fewest,
        quiet=quiet,
        verbose=verbose,
    )
    sys.exit(session.run(start, resume))


def _check_kind(
    is_script: bool, resume: str | None, check_collectives: bool, emulated: bool, elastic: Elastic | None
) -> None:
    """UserError for options that are not for this kind of target."""
    if is_script and resume is not None:
        raise UserError("--resume is for YAML files; a script reads its own checkpoints, so start it again without it")
    if is_script and check_collectives:
        raise UserError(
            "--check-collectives is for YAML files; in a script, Horovod's API compares by itself what ranks ask for"
        )
    if is_script and emulated:
        raise UserError(
            "--latency-ms, --gbps and --straggler are for YAML files; a script's ranks are not ours to slow"
        )
    if not is_script and elastic is not None:
        raise UserError(
            "--host-discovery-script is for scripts that use hvd.elastic; a YAML file goes on from its checkpoints "
            "without the lost host: --max-restarts 1 --min-np N"
        )


def _check_positive(option: str, value: float | None) -> None:
    if value is not None and value <= 0:
        raise UserError(f"{option}: expected seconds above 0, got {value:g}")


def _hosts(text: str | None, file: Path | None, elastic: Elastic | None) -> tuple[Host, ...]:
    from cli.hosts import given

    options = {"--hosts": text, "--hostfile": file, "--host-discovery-script": elastic}
    first, *others = [option for option, value in options.items() if value is not None] or [""]
    if others:
        raise UserError(f"{first} and {others[0]} both say where to run; give one of them")
    return elastic.hosts() if elastic is not None else given(text, file)


def _elastic(script: Path | None, fewest: int | None, most: int | None, launcher: str, restarts: int) -> Elastic | None:
    from cli.elastic import Elastic

    if script is None:
        if most is not None:
            raise UserError("--max-np is for Horovod elastic; give --host-discovery-script too")
        return None
    if launcher != "horovodrun":
        raise UserError(
            "--host-discovery-script needs --launcher horovodrun: Horovod elastic alone lets ranks come and go"
        )
    if restarts:
        raise UserError("--max-restarts starts a job again; with --host-discovery-script Horovod does what is needed")
    return Elastic(script, fewest or 1, most)


def _world_size(np: int | None, hosts: tuple[Host, ...], oversubscribe: bool) -> int:
    from cli import nesting
    from cli.slurm import allocation

    nesting.refuse_ranks()
    job = None if hosts else allocation.here()
    if job is not None:
        return job.world_size(np, oversubscribe=oversubscribe)
    return np or sum(host.slots for host in hosts) or 1


def _ranks(text: str, world_size: int) -> list[int]:
    if text == "all":
        return list(range(world_size))
    words = [w for w in text.split(",") if w]
    wrong = next((w for w in words if not w.isdigit() or int(w) >= world_size), None)
    if wrong is not None:
        raise UserError(f"--tee: no rank '{wrong}'; expected ranks below {world_size} such as 0,1, or 'all'")
    return [int(w) for w in words]

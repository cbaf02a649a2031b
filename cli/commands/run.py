"""`ddl run`: one YAML file or script, many ranks."""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli import emulation, options
from hvd_train.errors import ExitCode, UserError

if TYPE_CHECKING:
    from cli.elastic import Elastic
    from cli.hosts import Host
    from cli.launchers.base import Command
    from cli.target import Target

YAML = {".yaml", ".yml"}


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
    launcher_args: Annotated[
        str | None,
        typer.Option(
            metavar="WORDS",
            help="Words for mpirun, srun or horovodrun, after those of ddl.",
            rich_help_panel=options.START,
        ),
    ] = None,
    env_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="File of variables for all ranks: KEY=VALUE lines.", rich_help_panel=options.START
        ),
    ] = None,
) -> None:
    """Run a YAML file, a Python script or a module on many ranks."""
    from cli import launching
    from cli.engines import choose, for_script
    from cli.environment import variables
    from cli.launchers.base import Job
    from cli.machine import Machine
    from cli.reach import reach, words
    from cli.target import of_module, of_script, of_scripts_run, of_yaml
    from hvd_train.script_options import Options

    arguments = arguments or []
    if module is None and target is None:
        raise UserError("run: nothing to run; expected a YAML file (.yaml), a Python script (.py) or -m MODULE")
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
    file = Path(target or "")
    names = _exported(env_file)
    forward, environment = variables(env or [])
    found = reach(
        places,
        Machine.here(),
        iface=iface,
        ssh_args=ssh_args,
        forward=(*names, *forward),
        by_interface=launcher == "horovodrun",
    )
    if check_collectives and file.suffix not in YAML:
        raise UserError(
            "--check-collectives is for YAML files; in a script, Horovod's API compares by itself what ranks ask for"
        )
    if (latency_ms or gbps or straggler) and file.suffix not in YAML:
        raise UserError(
            "--latency-ms, --gbps and --straggler are for YAML files; a script's ranks are not ours to slow"
        )
    if elastic is not None and file.suffix in YAML:
        raise UserError(
            "--host-discovery-script is for scripts that use hvd.elastic; a YAML file goes on from its checkpoints "
            "without the lost host: --max-restarts 1 --min-np N"
        )

    is_script = module is not None or file.suffix == ".py"
    if is_script and resume is not None:
        raise UserError("--resume is for YAML files; a script reads its own checkpoints, so start it again without it")
    told = Options()
    if is_script:
        name = module.replace(".", "-") if module is not None else file.stem
        told = Options(
            for_script(engine),
            of_scripts_run(name, output, claim=not dry_run),
            None if elastic else tuple(shown),
            tag=len(shown) > 1 and not elastic,
        )

    def prepare(
        places: tuple[Host, ...], ranks: int, output: Path | None, resume: str | None
    ) -> tuple[Command, Target]:
        if module is not None:
            what = of_module(module, arguments, told)
        elif file.suffix == ".py":
            what = of_script(file, arguments, told)
        elif file.suffix in YAML:
            launch = {"world_size": ranks, "engine": chosen, "tee": [r for r in shown if r < ranks], "columns": columns}
            launch["check_collectives"] = check_collectives
            launch["emulate"] = emulation.section(latency_ms, gbps, straggler, ranks)
            what = of_yaml(file, arguments, output=output, resume=resume, claim=not dry_run, **launch)
        else:
            raise UserError(f"'{target or ''}': expected a YAML file (.yaml), a Python script (.py) or -m MODULE")
        job = Job(
            program=what.program,
            world_size=ranks,
            engine=chosen,
            hosts=places,
            environment={**environment, **what.environment},
            forward=found.forward,
            bind=bind,  # type: ignore[arg-type]
            oversubscribe=oversubscribe,
            network=found.network,
            elastic=elastic,
            outlives=what.outlives,
            ssh=found.client.args,
            words=words("--launcher-args", launcher_args),
        )
        return launching.command(launcher, job), what

    started, what = prepare(places, world_size, output, resume)
    for note in () if quiet else (*started.notes, *found.notes):
        print(f"ddl: {note}", file=sys.stderr)
    if dry_run:
        print(started)
        return
    if told.output is not None and told.shown is not None and len(told.shown) < world_size and not quiet:
        print(f"ddl: {told.output}/logs has what each rank prints; --tee chooses what is shown here", file=sys.stderr)
    from cli import script_end
    from cli.execute import Execution
    from cli.hosts import format_hosts
    from cli.restarts import Origin, again
    from cli.run_folder import is_begun

    if not no_preflight:
        from cli.preflight.start import look

        look(found, what.program, what.environment)
    origin = Origin.of(None if is_script else what.folder, resume)
    began, restart = time.monotonic(), 0
    while True:
        if verbose:
            print(f"ddl: {started}", file=sys.stderr)
        names = [host.name for host in found.others if host in places]
        left = None if timeout is None else max(1.0, timeout - (time.monotonic() - began))
        fewest = None if elastic is None else elastic.fewest
        code = Execution(started, world_size, left, quiet, verbose, stall_timeout, names, fewest, found.client).run()
        if code != ExitCode.FAILURE or restart == max_restarts:
            break
        restart += 1
        try:
            places, world_size = again(
                places, world_size, min_np or world_size, oversubscribe=oversubscribe, client=found.client
            )
        except UserError as error:
            print(f"ddl: {error}", file=sys.stderr)
            break
        started, what = prepare(places, world_size, what.folder, origin.source())
        where = f" on {format_hosts(places)}" if places else ""
        print(f"ddl: restart {restart} of {max_restarts}: {world_size} ranks{where}", file=sys.stderr)
    if is_script and what.folder is not None and is_begun(what.folder):
        script_end.note(what.folder, code)
    if code and what.folder is not None and is_begun(what.folder):
        print(f"ddl: see {what.folder}", file=sys.stderr)
    sys.exit(code)


def _check_positive(option: str, value: float | None) -> None:
    if value is not None and value <= 0:
        raise UserError(f"{option}: expected seconds above 0, got {value:g}")


def _hosts(text: str | None, file: Path | None, elastic: Elastic | None) -> tuple[Host, ...]:
    from cli.hosts import given

    options_ = {"--hosts": text, "--hostfile": file, "--host-discovery-script": elastic}
    first, *others = [option for option, value in options_.items() if value is not None] or [""]
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


def _exported(file: Path | None) -> list[str]:
    """The names of the variables in `file`, which this process and its ranks have from now on as if the shell had set them."""
    import os

    from cli import env_file

    found = env_file.load(file) if file is not None else {}
    os.environ.update(found)
    return list(found)

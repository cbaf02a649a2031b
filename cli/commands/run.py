"""`ddl run`: one YAML file or script, many ranks."""

from __future__ import annotations

import re
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli import emulation
from hvd_train.errors import ExitCode, UserError, nearest

if TYPE_CHECKING:
    from cli.elastic import Elastic
    from cli.hosts import Host
    from cli.launchers.base import Command
    from cli.target import Target

_SECRET = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|API_?KEY|ACCESS_?KEY|PRIVATE", re.IGNORECASE)
BINDINGS = ("core", "socket", "numa", "none")
YAML = {".yaml", ".yml"}


def command(
    target: Annotated[str | None, typer.Argument(help="YAML file or Python script.", show_default=False)] = None,
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]... | -- [ARG]...", show_default=False)
    ] = None,
    module: Annotated[str | None, typer.Option("-m", "--module", help="Run a module instead of a file.")] = None,
    np: Annotated[int | None, typer.Option("-n", "--np", help="Ranks to start [default: all slots, or 1].")] = None,
    hosts: Annotated[str | None, typer.Option("-H", "--hosts", help="Hosts and slots, as h1:4,h2:4.")] = None,
    hostfile: Annotated[Path | None, typer.Option(help="File of hosts: Open MPI, MPICH or Horovod dialect.")] = None,
    engine: Annotated[str, typer.Option(help="auto, mpi, horovod or single.")] = "auto",
    launcher: Annotated[str, typer.Option(help="auto, local, mpirun, horovodrun or srun.")] = "auto",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the command and run nothing.")] = False,
    output: Annotated[Path | None, typer.Option(help="Run folder [default: runs/NAME-TIME].")] = None,
    resume: Annotated[str | None, typer.Option(metavar="latest|DIR", help="Go on from a run folder.")] = None,
    env: Annotated[
        list[str] | None, typer.Option("-x", "--env", metavar="KEY[=VALUE]", help="Variable for all ranks.")
    ] = None,
    bind: Annotated[str | None, typer.Option(help="core, socket, numa or none.")] = None,
    oversubscribe: Annotated[bool, typer.Option("--oversubscribe", help="Allow more ranks than slots.")] = False,
    timeout: Annotated[float | None, typer.Option(help="Seconds after which the job is ended.")] = None,
    stall_timeout: Annotated[
        float, typer.Option(min=0, help="Seconds without any progress after which the job is ended; 0 is never.")
    ] = 300,
    max_restarts: Annotated[
        int,
        typer.Option(min=0, help="Times that a job which lost a rank or a host goes on from its newest checkpoint."),
    ] = 0,
    min_np: Annotated[
        int | None, typer.Option(min=1, help="Ranks that are enough after a host is lost [default: all].")
    ] = None,
    max_np: Annotated[int | None, typer.Option(min=1, help="Horovod elastic: ranks that are not exceeded.")] = None,
    host_discovery_script: Annotated[
        Path | None, typer.Option(help="Horovod elastic: program that prints the hosts there are, as h1:4.")
    ] = None,
    iface: Annotated[
        str | None, typer.Option(help="Interface or subnet that joins the hosts [default: by the route to them].")
    ] = None,
    no_preflight: Annotated[bool, typer.Option("--no-preflight", help="Do not ask the hosts first.")] = False,
    check_collectives: Annotated[
        bool, typer.Option("--check-collectives", help="Name the ranks that ask for different collectives; slow.")
    ] = False,
    latency_ms: Annotated[float, typer.Option(help=emulation.LATENCY)] = 0.0,
    gbps: Annotated[float | None, typer.Option(help=emulation.GBPS)] = None,
    straggler: Annotated[str | None, typer.Option(metavar="RANK:FACTOR", help=emulation.STRAGGLER)] = None,
    tee: Annotated[str, typer.Option(metavar="RANKS", help="Ranks whose output is shown: 0,2 or all.")] = "0",
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Show errors only.")] = False,
    verbose: Annotated[
        bool, typer.Option("-v", "--verbose", help="Show the command and the launcher's words.")
    ] = False,
    ssh_args: Annotated[
        str | None, typer.Option(metavar="WORDS", help="Words for ssh to the other hosts, as '-p 2222 -J bastion'.")
    ] = None,
    launcher_args: Annotated[
        str | None, typer.Option(metavar="WORDS", help="Words for mpirun, srun or horovodrun, after those of ddl.")
    ] = None,
    env_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File of variables for all ranks: KEY=VALUE lines.")
    ] = None,
) -> None:
    """Run a YAML file, a Python script or a module on many ranks."""
    from cli import launching
    from cli.engines import choose, for_script
    from cli.launchers.base import Job
    from cli.machine import Machine
    from cli.reach import reach, words
    from cli.target import of_module, of_script, of_yaml

    arguments = arguments or []
    if module is not None and target is not None:
        arguments = [target, *arguments]
    if bind is not None and bind not in BINDINGS:
        raise UserError(f"--bind: no binding '{bind}'{nearest(bind, BINDINGS)}")
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
    forward, environment = _environment(env or [])
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

    def prepare(
        places: tuple[Host, ...], ranks: int, output: Path | None, resume: str | None
    ) -> tuple[Command, Target]:
        if module is not None:
            what = of_module(module, arguments, for_script(engine))
        elif file.suffix == ".py":
            what = of_script(file, arguments, for_script(engine))
        elif file.suffix in YAML:
            launch = {"world_size": ranks, "engine": chosen, "tee": [r for r in shown if r < ranks], "columns": columns}
            launch["check_collectives"] = check_collectives
            launch["emulate"] = emulation.section(latency_ms, gbps, straggler, ranks)
            what = of_yaml(file, arguments, output=output, resume=resume, **launch)
        else:
            raise UserError(f"'{target or ''}': expected a YAML file (.yaml), a Python script (.py) or -m MODULE")
        job = Job(
            program=what.program,
            world_size=ranks,
            engine=chosen,
            hosts=places,
            environment=environment,
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
    from cli.execute import Execution
    from cli.hosts import format_hosts
    from cli.restarts import Origin, again

    if not no_preflight:
        from cli.preflight.start import look

        look(found, what.program)
    origin = Origin.of(what.folder, resume)
    began, restart = time.monotonic(), 0
    while True:
        if verbose:
            print(f"ddl: {started}", file=sys.stderr)
        names = [host.name for host in found.others if host in places]
        left = None if timeout is None else max(1.0, timeout - (time.monotonic() - began))
        fewest = None if elastic is None else elastic.fewest
        code = Execution(started, world_size, left, quiet, verbose, stall_timeout, names, fewest).run()
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
    if code and what.folder is not None and what.folder.is_dir():
        print(f"ddl: see {what.folder}", file=sys.stderr)
    sys.exit(code)


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
    from cli.slurm import allocation

    if np is not None and np < 1:
        raise UserError(f"--np: expected at least 1 rank, got {np}")
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


def _environment(assignments: list[str]) -> tuple[tuple[str, ...], dict[str, str]]:
    """Names to take over from this shell, and variables with values."""
    import os

    for word in assignments:
        name, equals, _ = word.partition("=")
        if not name.isidentifier():
            raise UserError(f"--env: '{word}' is no variable; expected KEY=VALUE or KEY")
        if not equals and name not in os.environ:
            raise UserError(f"--env: {name} is not set in this shell; set it, or give {name}=VALUE")
        if equals and _SECRET.search(name):
            raise UserError(
                f"--env: {name} looks like a secret, and a value given here shows in the command line; "
                f"export it and give the name alone: -x {name}"
            )
    forward = tuple(a for a in assignments if "=" not in a)
    pairs = (a.partition("=") for a in assignments if "=" in a)
    return forward, {name: value for name, _, value in pairs}

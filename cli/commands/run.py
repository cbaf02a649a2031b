"""`ddl run`: start one YAML file, script or module on many ranks."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.arguments import options
from cli.launch.emulation import Emulation
from cli.output.streams import say
from hvd_train.errors import UserError

if TYPE_CHECKING:
    from cli.launch.elastic import Elastic
    from cli.launch.entrypoint import Entrypoint
    from cli.launch.start import Start
    from cli.launch.target import Targets


def command(
    target: options.Target = None,
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
            help="Horovod elastic: program that prints the available hosts, one h1:4 a line.",
            rich_help_panel=options.WHERE,
        ),
    ] = None,
    max_np: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Horovod elastic: largest number of ranks.", rich_help_panel=options.WHERE
        ),
    ] = None,
    module: options.Module = None,
    env: options.Env = None,
    dry_run: options.DryRun = False,
    no_preflight: Annotated[
        bool,
        typer.Option("--no-preflight", help="Skip the check of the other hosts.", rich_help_panel=options.START),
    ] = False,
    check_collectives: Annotated[
        bool,
        typer.Option(
            "--check-collectives",
            help="Name the ranks whose collectives differ; slow, for debugging.",
            rich_help_panel=options.START,
        ),
    ] = False,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="latest|DIR",
            help="Resume from the newest run, a run folder or a checkpoint.",
            rich_help_panel=options.START,
        ),
    ] = None,
    timeout: options.Timeout = None,
    stall_timeout: Annotated[
        float,
        typer.Option(
            min=0,
            metavar="SECONDS",
            help="End the job after this many seconds without progress; 0 disables.",
            rich_help_panel=options.FAILURES,
        ),
    ] = 300,
    max_restarts: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            help="Restarts from the newest checkpoint after the loss of a rank or a host.",
            rich_help_panel=options.FAILURES,
        ),
    ] = 0,
    min_np: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Smallest number of ranks after the loss of a host.",
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
    from cli.arguments.configuration import load
    from cli.follow.restarts import Restarts
    from cli.follow.session import Session
    from cli.follow.supervisor import Limits
    from cli.hosts.machine import Machine
    from cli.launch.elastic import elastic_hosts, requested
    from cli.launch.engines import choose_engine
    from cli.launch.entrypoint import Module, YamlFile, entrypoint
    from cli.launch.env_file import load_env_file
    from cli.launch.environment import variables
    from cli.launch.job import Job
    from cli.launch.start import Starter, world_size
    from cli.launch.target import YamlTargets, check_module, script_targets
    from cli.remote.preflight.start import require_ready
    from cli.remote.reach import reach, words

    entry = entrypoint("run", target, module, arguments or [])
    elastic = requested(host_discovery_script, min_np, max_np, launcher, max_restarts)
    emulation = Emulation(latency_ms, gbps, straggler)
    _check_options(entry, resume, check_collectives, emulation, elastic)
    listed = elastic_hosts(hosts, hostfile, elastic)
    ranks = elastic.first(np, listed) if elastic else world_size(np, listed, oversubscribe=oversubscribe)
    wanted = "horovod" if elastic and engine == "auto" else engine
    chosen = choose_engine(wanted, ranks, alone=not listed and launcher in {"auto", "local"})
    shown = _shown_ranks(tee, ranks)
    exported = load_env_file(env_file) if env_file is not None else {}
    os.environ.update(exported)
    forward, environment = variables(env or [])
    machine = Machine.here()
    reached = reach(
        listed,
        machine,
        iface=iface,
        ssh_args=ssh_args,
        forward=(*exported, *forward),
        by_interface=launcher == "horovodrun",
    )
    if isinstance(entry, Module) and not (reached.others or elastic or machine.allocation):
        check_module(entry.module, {**os.environ, **environment})
    template = Job(
        program=(),
        world_size=ranks,
        engine=chosen,
        environment=environment,
        bind=bind,  # type: ignore[arg-type]
        oversubscribe=oversubscribe,
        elastic=elastic,
        words=words("--launcher-args", launcher_args),
    )
    targets: Targets
    if isinstance(entry, YamlFile):
        config = load(entry.path, entry.overrides)
        targets = YamlTargets(
            entry.path, config, chosen, shown, _columns(launcher), check_collectives, emulation, claim=not dry_run
        )
    else:
        targets = script_targets(entry, wanted, output, shown, elastic is not None, claim=not dry_run)
    starter = Starter(launcher, reached.onto(template), targets)
    start = starter.start(listed, ranks, resume, output)
    for note in () if quiet else (*start.command.notes, *reached.notes):
        say(note)
    if dry_run:
        print(start.command)
        return
    if not quiet:
        _say_logs(start, shown)
    if not no_preflight:
        require_ready(reached, start.target)
    session = Session(
        lambda hosts, ranks, resume: starter.start(hosts, ranks, resume, start.target.folder),
        reached,
        Limits(timeout, stall_timeout, elastic.fewest if elastic else None),
        Restarts(max_restarts, min_np, oversubscribe),
        quiet=quiet,
        verbose=verbose,
    )
    sys.exit(session.run(start, resume))


def _check_options(
    entry: Entrypoint, resume: str | None, check_collectives: bool, emulation: Emulation, elastic: Elastic | None
) -> None:
    """Raise UserError for an option that the kind of `entry` does not have."""
    from cli.launch.entrypoint import YamlFile

    is_yaml = isinstance(entry, YamlFile)
    if not is_yaml and resume is not None:
        raise UserError("--resume is for YAML files; a script reads its own checkpoints: start it without --resume")
    if not is_yaml and check_collectives:
        raise UserError(
            "--check-collectives is for YAML files; in a script, Horovod's API compares the requests of the ranks itself"
        )
    if not is_yaml and emulation.is_on:
        raise UserError("--latency-ms, --gbps and --straggler are for YAML files; ddl cannot slow down a script")
    if is_yaml and elastic is not None:
        raise UserError(
            "--host-discovery-script is for scripts that use hvd.elastic; a YAML file resumes from its checkpoints "
            "without the lost host: --max-restarts 1 --min-np N"
        )


def _shown_ranks(text: str, world_size: int) -> tuple[int, ...]:
    """Return the ranks of `--tee`."""
    if text == "all":
        return tuple(range(world_size))
    numbers = [number for number in text.split(",") if number]
    wrong = next((n for n in numbers if not n.isdigit() or int(n) >= world_size), None)
    if wrong is not None:
        raise UserError(f"--tee: no rank '{wrong}'; expected ranks below {world_size} such as 0,1, or 'all'")
    return tuple(map(int, numbers))


def _columns(launcher: str) -> int | None:
    """Return the width of the terminal; None if rank 0 cannot draw on it, as under horovodrun."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() and launcher != "horovodrun" else None


def _say_logs(start: Start, shown: tuple[int, ...]) -> None:
    """Name the folder with the output of all ranks if the terminal shows only some of them."""
    if start.target.logs is not None and len(shown) < start.ranks:
        say(f"{start.target.logs} has the output of each rank; --tee selects the ranks that are shown here")

"""`ddl run`: one YAML file or script, many ranks."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hvd_train.errors import UserError, nearest

if TYPE_CHECKING:
    from cli.hosts import Host

BINDINGS = ("core", "socket", "numa", "none")


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
    tee: Annotated[str, typer.Option(metavar="RANKS", help="Ranks whose output is shown: 0,2 or all.")] = "0",
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Show errors only.")] = False,
    verbose: Annotated[
        bool, typer.Option("-v", "--verbose", help="Show the command and the launcher's words.")
    ] = False,
) -> None:
    """Run a YAML file, a Python script or a module on many ranks."""
    from cli import launching
    from cli.engines import choose
    from cli.launchers.base import Job
    from cli.target import of_module, of_script, of_yaml

    arguments = arguments or []
    if module is not None and target is not None:
        arguments = [target, *arguments]
    if bind is not None and bind not in BINDINGS:
        raise UserError(f"--bind: no binding '{bind}'{nearest(bind, BINDINGS)}")
    places = _hosts(hosts, hostfile)
    world_size = _world_size(np, places)
    chosen = choose(engine, world_size, alone=not places and launcher in {"auto", "local"})
    shown = _ranks(tee, world_size)
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() and launcher != "horovodrun" else None
    file = Path(target or "")
    if module is not None:
        what = of_module(module, arguments)
    elif file.suffix == ".py":
        what = of_script(file, arguments)
    elif file.suffix in {".yaml", ".yml"}:
        launch = {"world_size": world_size, "engine": chosen, "tee": shown, "columns": columns}
        what = of_yaml(file, arguments, output=output, resume=resume, **launch)
    else:
        raise UserError(f"'{target or ''}': expected a YAML file (.yaml), a Python script (.py) or -m MODULE")
    forward, environment = _environment(env or [])
    job = Job(
        program=what.program,
        world_size=world_size,
        engine=chosen,
        hosts=places,
        environment=environment,
        forward=forward,
        bind=bind,  # type: ignore[arg-type]
        oversubscribe=oversubscribe,
    )
    started = launching.command(launcher, job)
    for note in () if quiet else started.notes:
        print(f"ddl: {note}", file=sys.stderr)
    if dry_run:
        print(started)
        return
    if timeout is not None and timeout <= 0:
        raise UserError(f"--timeout: expected seconds above 0, got {timeout:g}")
    if verbose:
        print(f"ddl: {started}", file=sys.stderr)
    from cli.execute import Execution

    code = Execution(started, world_size, timeout, quiet, verbose).run()
    if code and what.folder is not None and what.folder.is_dir():
        print(f"ddl: see {what.folder}", file=sys.stderr)
    sys.exit(code)


def _hosts(text: str | None, file: Path | None) -> tuple[Host, ...]:
    from cli.hosts import parse_hostfile, parse_hosts

    if text is not None and file is not None:
        raise UserError("--hosts and --hostfile both say where to run; give one of them")
    if text is not None:
        return parse_hosts(text, "--hosts")
    if file is None:
        return ()
    try:
        return parse_hostfile(file.read_text(encoding="utf-8"), str(file))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--hostfile: {file} cannot be read: {error}") from None


def _world_size(np: int | None, hosts: tuple[Host, ...]) -> int:
    if np is None:
        return sum(host.slots for host in hosts) or 1
    if np < 1:
        raise UserError(f"--np: expected at least 1 rank, got {np}")
    return np


def _ranks(text: str, world_size: int) -> list[int]:
    if text == "all":
        return list(range(world_size))
    words = [w for w in text.split(",") if w]
    wrong = next((w for w in words if not w.isdigit() or int(w) >= world_size), None)
    if wrong is not None:
        raise UserError(f"--tee: no rank '{wrong}'; expected ranks below {world_size} such as 0,1, or 'all'")
    return [int(w) for w in words]


def _environment(assignments: list[str]) -> tuple[tuple[str, ...], dict[str, str]]:
    """Names to take over from this shell, and variables with values."""
    import os

    for word in assignments:
        name, equals, _ = word.partition("=")
        if not name.isidentifier():
            raise UserError(f"--env: '{word}' is no variable; expected KEY=VALUE or KEY")
        if not equals and name not in os.environ:
            raise UserError(f"--env: {name} is not set in this shell; set it, or give {name}=VALUE")
    forward = tuple(a for a in assignments if "=" not in a)
    pairs = (a.partition("=") for a in assignments if "=" in a)
    return forward, {name: value for name, _, value in pairs}

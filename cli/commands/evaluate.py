"""`ddl evaluate`: measure the model of a run on held-out samples, or on other data."""

from __future__ import annotations

import shutil
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from cli.arguments import options
from cli.output import pictures
from hvd_train.errors import UserError, nearest
from hvd_train.text.drafts import complete
from hvd_train.text.names import printable

if TYPE_CHECKING:
    from hvd_train.saved.run import Run


EPISODES = 100
FILMS = (".gif", ".mp4")


def _film(word: str) -> Path:
    """Parse the path of a film; UserError for another ending."""
    path = Path(word).absolute()
    if path.suffix.lower() not in FILMS:
        raise UserError(f"--render: {word} has an unknown ending{nearest(path.suffix, FILMS)}")
    return path


def command(
    run: options.TrainedRun,
    split: options.Split = "test",
    data: options.DataOverrides = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help="Metrics in place of the run's, such as f1,auroc, or names of ddl list metrics.",
            show_default="those of the run",
            rich_help_panel=options.START,
        ),
    ] = None,
    episodes: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Agents: held-out episodes to play.",
            show_default="100",
            rich_help_panel=options.START,
        ),
    ] = None,
    stochastic: Annotated[
        bool,
        typer.Option(
            "--stochastic",
            help="Agents: act as in training; by default the best action is taken.",
            rich_help_panel=options.START,
        ),
    ] = False,
    render: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Agents: .gif or .mp4 that shows the first episode.",
            parser=_film,
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    np: options.Np = None,
    hosts: options.Hosts = None,
    hostfile: options.Hostfile = None,
    iface: options.Iface = None,
    ssh_args: options.SshArgs = None,
    output: options.ResultFolder = None,
    as_json: options.Json = False,
) -> None:
    """Measure the model of a run: metrics, classes, worst samples, evaluate.json, and pictures.

    The agent of a run plays: returns, lengths and successes of held-out episodes.
    """
    pictures.check("evaluate")
    from cli.trained.evaluate import text
    from cli.trained.evaluate.episodes import with_interval
    from cli.trained.folder import result_folder
    from cli.trained.launch import Ranks, run_task

    found, asked = _asked(run, data or [], metrics, split), (episodes, stochastic, render)
    task, chosen = _task(found, split, *asked)
    with ExitStack() as files, result_folder(found, "evaluate", output) as (folder, final):
        film = files.enter_context(complete(render, "--render")) if render else None
        result = run_task(found, task, chosen, Ranks(np, hosts, hostfile, iface, ssh_args), folder)
        result = {"run": str(found.folder), "checkpoint": str(found.checkpoint), **with_interval(result)}
        names = _save(result, folder)
        if film is not None:
            _move(folder / chosen["render"], film)
    print(text.json(result) if as_json else text.text(result, None if sys.stdout.isatty() else 120), end="")
    print(printable(f"{final}: {', '.join(names)} written"), file=sys.stderr)
    if render is not None:
        print(printable(f"{render}: {result['frames']} pictures written"), file=sys.stderr)


def _asked(path: Path, data: list[str], metrics: str | None, split: str) -> Run:
    """Return the run at `path` with what is to be measured; UserError for options that do not fit it."""
    from hvd_train.saved.run import find_run

    found = find_run(path)
    if found.config.agent is None:
        return _measured(found, path, data, metrics)
    given = "--metrics" if metrics is not None else "--split" if split != "test" else None
    if given is not None:
        raise UserError(f"{given}: it is for samples, and the run has an agent, which plays episodes; leave it out")
    return find_run(path, data) if data else found


def _task(
    run: Run, split: str, episodes: int | None, stochastic: bool, render: Path | None
) -> tuple[str, dict[str, Any]]:
    """Return the task and its options; UserError for options of agents if there is none."""
    if run.config.agent is not None:
        film = f"episode{render.suffix.lower()}" if render else None
        return "play", {"episodes": episodes or EPISODES, "stochastic": stochastic, "render": film}
    given = {"--episodes": episodes, "--stochastic": stochastic or None, "--render": render}
    wrong = next((option for option, value in given.items() if value is not None), None)
    if wrong is not None:
        raise UserError(f"{wrong}: it is for agents, and the run has a model of samples; leave it out")
    return "evaluate", {"split": split}


def _move(made: Path, film: BinaryIO) -> None:
    with made.open("rb") as file:
        shutil.copyfileobj(file, film)
    made.unlink()


def _measured(found: Run, path: Path, data: list[str], metrics: str | None) -> Run:
    """Return the run `found` at `path` with the data and the metrics to measure; UserError if they do not fit."""
    from cli.trained.evaluate.data import held_out
    from cli.trained.evaluate.metrics import sections
    from hvd_train.saved.run import find_run

    if data:
        found = find_run(path, held_out(found.config.data, data))
    config = found.config
    train = config.train
    if metrics is not None:
        train = train.model_copy(update={"metrics": sections(metrics, found.data.get("task", ""))})
    samples = config.data.model_copy(update={"transforms": []})  # they change training samples only
    return replace(found, config=config.model_copy(update={"train": train, "data": samples}))


def _save(result: dict[str, object], folder: Path) -> list[str]:
    """Write evaluate.json and the pictures, and return the names of the files."""
    from cli.trained.evaluate import pictures as drawn
    from hvd_train.text import strict_json

    (folder / "evaluate.json").write_text(strict_json.dumps(result) + "\n", encoding="utf-8")
    return ["evaluate.json", *drawn.save(result, folder)]

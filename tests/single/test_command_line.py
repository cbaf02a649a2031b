"""The command line of ddl: words, options, help, and messages for invalid command lines."""

from __future__ import annotations

import io
import os
import re
import shlex
import signal
import subprocess
import sys
import unicodedata
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from cli import main
from cli.arguments import argv
from cli.arguments.options import PANELS
from cli.output.columns import columns
from hvd_train.config.plugins import FAMILIES
from hvd_train.errors import UserError
from hvd_train.monitor.sinks import terminal
from hvd_train.text import display, names
from tests.integration.ddl import DIGITS, ROOT

VALUED = {
    "--launcher-args": "--launcher-args",
    "-n": "--np",
    "--np": "--np",
    "-m": "--module",
    "--module": "--module",
    "-x": "--env",
    "--env": "--env",
}
COMMANDS: dict[str, Any] = typer.main.get_command(main.app).commands  # type: ignore[attr-defined]
Ddl = Callable[..., tuple[int, str, str]]


@pytest.fixture
def ddl(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ddl:
    """Return a function that runs a command line in this process: exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "train.py").touch()

    def run(*words: str) -> tuple[int, str, str]:
        code = main.run(list(words))
        out, err = capsys.readouterr()
        return int(code), out, err

    return run


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("s.py", "-- s.py"),
        ("s.py --lr 0.1 -n 3", "-- s.py --lr 0.1 -n 3"),
        ("--np 2 s.py --np 4", "--np 2 -- s.py --np 4"),
        ("-n2 -q s.py -q", "-n2 -q -- s.py -q"),
        ("-qn 2 s.py -h", "-qn 2 -- s.py -h"),
        ("-qn2 s.py", "-qn2 -- s.py"),
        ("--np=2 s.py a", "--np=2 -- s.py a"),
        ("-x A=1 --env B s.py", "-x A=1 --env B -- s.py"),
        ("s.py -- --lr 1", "-- s.py --lr 1"),
        ("s.py -- -- a", "-- s.py -- a"),
        ("s.py a -- b", "-- s.py a -- b"),
        ("--np 2 -- s.py --np 4", "--np 2 -- s.py --np 4"),
        ("-- s.py -- --np", "-- s.py --np"),
        ("-m mod --np 4", "-m mod -- --np 4"),
        ("-n 2 -m mod -- -h", "-n 2 -m mod -- -h"),
        ("-mmod a.yaml -q", "-mmod -- a.yaml -q"),
        ("--module=mod -q", "--module=mod -- -q"),
        ("--module mod", "--module mod --"),
        ("-qm mod -n 3", "-qm mod -- -n 3"),
        ("train --lr 1", "-- train --lr 1"),
        ("- --lr 1", "-- - --lr 1"),
        ("m.yaml --np 4 train.epochs=2", "m.yaml --np 4 train.epochs=2"),
        ("--np 4 m.yml -q", "--np 4 m.yml -q"),
        ("-- m.yaml --np 4", "-- m.yaml --np 4"),
        ("--np", "--np"),
        ("-q -m", "-q -m"),
        ("--np 2 -h", "--np 2 -h"),
        ("--unknown 3 s.py", "--unknown -- 3 s.py"),
        ("", ""),
    ],
)
def test_what_follows_a_script_is_its_own(words: str, expected: str) -> None:
    assert argv.for_parser(words.split(), VALUED) == expected.split()


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ("--np= m.yaml", "--np: expected a value, got ''"),
        ("--launcher-args --np m.yaml", None),
        ("--launcher-args= m.yaml", None),
        ("--np 2 m.yaml --np 4", "--np is given twice"),
        ("-n 2 m.yaml --np=2", "--np is given twice"),
        ("-n --env m.yaml", "--np: expected a value before --env"),
        ("--env -q m.yaml", "--env: expected a value before -q"),
        ("-x A=1 -x B=2 --env C m.yaml", None),
        ("--np -1 m.yaml", None),
        ("-n 2 -- s.py -n 3", None),
        ("--np", None),
    ],
)
def test_options_that_come_twice_or_without_a_value(words: str, problem: str | None) -> None:
    known = {*VALUED, "-q"}
    if problem is None:
        argv.check_values(words.split(), VALUED, {"--env"}, known)
    else:
        with pytest.raises(UserError, match=problem):
            argv.check_values(words.split(), VALUED, {"--env"}, known)


@pytest.mark.parametrize("front", [["train.py"], ["-m", "train"]])
def test_a_script_gets_all_words_behind_it(front: list[str], ddl: Ddl) -> None:
    code, out, _ = ddl("run", "--dry-run", *front, "--lr", "a b", "-n", "3", "--np", "x", "--help")
    assert code == 0
    assert out.rstrip().endswith("--lr 'a b' -n 3 --np x --help")


def test_options_may_stand_behind_a_yaml_file(ddl: Ddl) -> None:
    code, out, _ = ddl("run", str(DIGITS), "--dry-run", "--engine", "MPI", "optimizer.name=adamw")
    assert code == 0
    assert '"engine":"mpi"' in out
    assert '"name":"AdamW"' in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("run", "run: expected a YAML file (.yaml)"),
        ("rnu", "no command 'rnu'; did you mean 'run'?"),
        ("--hlp", "no option '--hlp'; did you mean '--help'?"),
        ("run --nq 2 m.yaml", "no option '--nq'; did you mean '--np'?"),
        ("run --np", "Option '--np' requires an argument."),
        ("run --output --np 2 m.yaml", "--output: expected a value before --np"),
        ("run --np 2 --np 3 m.yaml", "--np is given twice; give it once"),
        ("run --np -1 train.py", "--np: expected at least 1 rank, got -1"),
        ("run --np 1.5 train.py", "--np: expected a number of ranks, got '1.5'"),
        ("run --np 1_0 train.py", "--np: expected a number of ranks, got '1_0'"),
        ("run --timeout nan train.py", "--timeout: expected seconds above 0, got 'nan'"),
        ("run --timeout -inf train.py", "--timeout: expected seconds above 0, got '-inf'"),
        ("run --timeout -1 train.py", "--timeout: expected seconds above 0, got '-1'"),
        ("run --stall-timeout -1 train.py", "Invalid value for '--stall-timeout'"),
        ("run --engine mpii train.py", "--engine: no engine 'mpii'; did you mean 'mpi'?"),
        ("run --engine= train.py", "--engine: expected a value, got ''"),
        ("run --output -- train.py", "--output: expected a value before --"),
        ("run -m", "Option '-m' requires an argument."),
        ("run --np 1000000 train.py", "--np: expected at most 999999 ranks, got 1000000"),
        ("run --output \udcff train.py", r"--output: {tmp}/\udcff is not UTF-8; give another path"),
        ("compare m.yaml --target loss=nan", "--target: 'loss=nan' is no goal; expected METRIC=VALUE"),
        ("init no/such/folder.yaml", "init: cannot write no/such/folder.yaml: No such file or directory"),
        ("validate .", ".: cannot be read: Is a directory"),
        (f"run {'x' * 300}.py", f"{'x' * 300}.py: "),
        ("run --bind Sockets train.py", "--bind: no binding 'Sockets'; did you mean 'socket'?"),
        ("run --launcher mpirunn train.py", "--launcher: no launcher 'mpirunn'; did you mean 'mpirun'?"),
        ("run --quiet=yes train.py", "Option '--quiet' does not take a value."),
        ("submit --launcher horovodrun train.py", "--launcher: no launcher 'horovodrun' (choices: auto, mpirun, srun)"),
        ("submit", "submit: expected a YAML file (.yaml), a Python script (.py) or -m MODULE"),
        ("list modles", "list: no family 'modles'; did you mean 'models'?"),
        ("list a b", "Got unexpected extra argument"),
        ("bench steps", "bench: no measurement 'steps'; did you mean 'step'?"),
        ("bench allreduce --sizes 9999999999G", "--sizes: an all-reduce of 10737418238926258176 bytes needs "),
        ("bench step --pairs x", "Invalid value for '--pairs'"),
        ("compare m.yaml --latency-ms nan", "--latency-ms: expected a number, got nan"),
        ("compare m.yaml --gbps inf", "--gbps: expected a number, got inf"),
        ("data shwo m.yaml", "data: no command 'shwo'; did you mean 'show'?"),
        ("hosts --to openmp f", "--to: no dialect 'openmp'; did you mean 'openmpi'?"),
        ("status --jsno", "no option '--jsno'; did you mean '--json'?"),
        ("results", "Missing argument"),
        ("schema x", "Got unexpected extra argument"),
        ("validate", "Missing argument 'file'."),
        ("validate \x1b[31m.yaml", r"\x1b[31m.yaml: no such file"),
        ("validate \udcff.yaml", r"\udcff.yaml: no such file"),
        ("validate exp[lr=0.1]:smile:.yaml", "exp[lr=0.1]:smile:.yaml: no such file"),
    ],
)
def test_a_command_line_that_cannot_be_used_is_one_sentence(words: str, message: str, ddl: Ddl, tmp_path: Path) -> None:
    code, out, err = ddl(*words.split(" "))
    assert code == 2
    assert out == ""
    assert err.startswith(f"ddl: {message.format(tmp=tmp_path)}")
    assert err.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["train.py"]


def test_without_words_there_is_help(ddl: Ddl) -> None:
    code, out, _ = ddl()
    assert code == 0
    assert "Commands:" in out
    assert re.fullmatch(r"ddl \S+\n", ddl("--version", "run")[1])
    assert ddl("LIST") == ddl("list")
    assert ddl("list")[1].split() == [*FAMILIES, "optimizers", "metrics"]


def _texts(command: Any) -> list[str]:
    """Return the help texts of the parameters of `command`."""
    return [text for p in command.params for text in (p.help, p.show_default) if isinstance(text, str)]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_each_text_as_it_is_written(name: str, ddl: Ddl) -> None:
    code, out, _ = ddl(name, "--help")
    shown = " ".join(out.split())
    assert code == 0
    assert [text for text in _texts(COMMANDS[name]) if " ".join(text.split()) not in shown] == []
    assert [c for c in out if unicodedata.category(c) == "So"] == []
    for option in COMMANDS[name].params:
        if isinstance(option.default, int | float) and option.default and not isinstance(option.default, bool):
            assert f"[default: {option.default}" in shown


def test_help_texts_pass_through_no_markup(ddl: Ddl) -> None:
    assert "Time limit: minutes, H:M:S, D-H, or 1h30m" in ddl("submit", "--help")[1]
    assert "[default: (all slots, or 1)]" in ddl("run", "--help")[1]


@pytest.mark.parametrize("name", ["run", "submit"])
def test_options_stand_in_panels(name: str, ddl: Ddl) -> None:
    titles = re.findall(r"^(\w+):$", ddl(name, "--help")[1], re.MULTILINE)
    assert titles == ["Arguments", *PANELS, "Options"]


def test_choices_are_in_the_help_and_in_the_completion(ddl: Ddl, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "--engine auto|horovod|mpi|single" in ddl("run", "--help")[1]
    monkeypatch.setenv("_DDL_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "ddl run --engine ")
    monkeypatch.setenv("COMP_CWORD", "3")
    monkeypatch.setattr("sys.argv", ["ddl"])
    assert ddl()[1].split() == ["auto", "horovod", "mpi", "single"]


def test_an_option_has_one_name_and_one_help_in_all_commands() -> None:
    by_name, by_parameter = defaultdict(set), defaultdict(set)
    for command in COMMANDS.values():
        for p in command.params:
            if p.param_type_name == "option":
                by_parameter[p.name].add((tuple(p.opts), p.help))
                for name in p.opts:
                    by_name[name].add((p.name, p.help))
    assert {k: v for k, v in [*by_name.items(), *by_parameter.items()] if len(v) > 1} == {}


@pytest.mark.parametrize(
    ("word", "choices", "expected"),
    [
        ("sgd", ["SGD", "Adam"], "SGD"),
        ("ADAMW", ["Adam", "AdamW"], "AdamW"),
        ("sgd", ["SGD", "sgd"], "sgd"),
        ("adam", ["SGD"], None),
    ],
)
def test_a_name_is_taken_in_any_case(word: str, choices: list[str], expected: str | None) -> None:
    assert names.match(word, choices) == expected


def test_a_name_of_two_cases_is_ambiguous() -> None:
    with pytest.raises(UserError, match="'sGd' names SGD and sgd"):
        names.match("sGd", ["SGD", "sgd"])


ODD = "exp[lr=0.1]:smile:\n\x1b[31m\udcff" + "x" * 200
SHOWN = r"exp[lr=0.1]:smile:\n\x1b[31m\udcff" + "x" * 200


@pytest.mark.parametrize("columns", [None, 80])
def test_a_closing_table_shows_a_folder_as_it_is_named(columns: int | None) -> None:
    stream = io.StringIO()
    figures = {"steps": 1, "epochs": 1.0, "samples_per_second": 1.0, "world_size": 1, "bytes_sent": 0}
    words = {"ended": "[b]done", "engine": "mpi", "strategy": ":smile:", "folder": ODD}
    sink = terminal.create(stream, columns)
    sink.open({"title": "[b]:smile:", "total_steps": 1, "first_step": 0})
    sink.train({"step": 1, "epoch": 1.0, "loss": 0.5})
    sink.close({"eval": {"[b]": 0.5}, "seconds": {"[b]": 1.0}, **figures, **words})
    plain = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", stream.getvalue())
    assert "[b]:smile:" in plain
    assert "[b]done" in plain
    assert SHOWN in re.sub(r"[\s│]", "", plain)


def test_a_bar_shows_its_description_as_it_is() -> None:
    stream = io.StringIO()
    with display.progress(display.console(file=stream, force_terminal=True, width=80)) as bar:
        bar.add_task("[b]:smile:", total=1)
    assert "[b]:smile:" in stream.getvalue()


def test_a_table_of_runs_shows_names_as_they_are() -> None:
    assert columns([["run"], [ODD]]).splitlines() == ["run", SHOWN]


def test_a_starter_names_itself_so_that_it_can_be_pasted(ddl: Ddl, tmp_path: Path) -> None:
    assert ddl("init", "my $model.yaml")[1].endswith("ddl run --np 2 'my $model.yaml'\n")
    assert ddl("init", "a\nb\udcff.yaml")[0] == 0
    assert r"# Start this run with: ddl run --np 2 'a\nb\udcff.yaml'" in (tmp_path / "a\nb\udcff.yaml").read_text()


@pytest.mark.parametrize(
    ("line", "code", "complaint"),
    [
        ("list strategies > /dev/full", 1, "ddl: cannot write the output: No space left on device\n"),
        ("--help >&-", 1, "ddl: cannot write the output: Bad file descriptor\n"),
        ("list nothing 2>&-", 2, ""),
    ],
)
def test_output_that_nobody_can_take_is_no_traceback(line: str, code: int, complaint: str) -> None:
    command = ["bash", "-c", f"{shlex.quote(sys.executable)} -m cli {line}"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (code, complaint)


def test_output_that_nobody_reads_ends_in_silence() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "cli", "list"]
    done = subprocess.run(command, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")

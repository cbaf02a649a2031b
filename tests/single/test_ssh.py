"""Answers over ssh, whatever the login shell prints, reads or returns."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cli.remote import ssh
from hvd_train.rank import internal
from tests.integration.parts import require

SSH = """\
#!/bin/sh
echo "$@" >> '{folder}/asked'
while [ $# -gt 2 ]; do shift; done
host=$1 command=$2
{shell}
"""
RUN = '/bin/sh -c "$command"'
ODD = [
    "two words",
    "it's",
    'a "b"',
    "back\\slash \\\\ \\n",
    "line\nline",
    "!bang !! $HOME `id`",
    "*",
    "",
    "ä\x1e{}\x1f",
]
ECHO = "import sys; from cli.remote import ssh; print(ssh.framed({'words': sys.argv[1:]}))"


@pytest.fixture
def login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a script that is run as ssh; `$command` is the command line of the remote shell."""
    program = tmp_path / "ssh"
    program.touch(mode=0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    return program


def answers_by(program: Path, shell: str) -> ssh.Answer:
    program.write_text(SSH.format(folder=program.parent, shell=shell))
    return ssh.PLAIN.ask("n2", [sys.executable, "-c", ECHO, *ODD], 20)


@pytest.mark.parametrize(
    "shell",
    [
        RUN,
        f"echo Welcome to n2; {RUN}",
        f"printf 'Welcome to n2'; {RUN}; printf 'Bye'",
        f"printf '{{\"words\": []}}'; echo Welcome >&2; {RUN}; echo Bye; echo Bye >&2",
        f"{RUN}; exit 3",
        f"read name; cat; {RUN}; cat",
        f'printf "\\036"; {RUN}; printf "\\036{{"',
        f"head -c 300000 /dev/zero; {RUN}; head -c 300000 /dev/zero",
    ],
    ids=["quiet", "banner", "no newline", "like an answer", "exit code", "reads", "control characters", "loud"],
)
def test_an_answer_arrives_through_any_login_shell(shell: str, login: Path) -> None:
    found = answers_by(login, shell)
    assert (found.problem, found.json) == ("", {"words": ODD})


@pytest.mark.parametrize("shell", ["bash", "csh", "fish"])
def test_a_command_means_the_same_to_every_shell(shell: str, login: Path) -> None:
    require(None if shutil.which(shell) else f"no {shell}: scripts/install-test-machine installs csh and fish")
    assert answers_by(login, f'{shell} -c "$command"').json == {"words": ODD}


def test_an_interpreter_in_a_path_with_a_space_is_found(
    login: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a 'b' c").symlink_to(Path(sys.executable).parents[1])
    monkeypatch.setattr(sys, "executable", str(tmp_path / "a 'b' c" / "bin" / Path(sys.executable).name))
    assert answers_by(login, RUN).json == {"words": ODD}


@pytest.mark.parametrize(
    ("shell", "problem"),
    [
        ("echo Welcome", "no answer, and exit code 0"),
        ("echo 'sh: 1: /venv/bin/python: not found' >&2; echo Bye >&2; exit 127", "/venv/bin/python: not found"),
        ("echo 'Permission denied (publickey).' >&2; exit 255", "Permission denied"),
    ],
)
def test_without_an_answer_the_line_with_a_remedy_is_the_problem(shell: str, problem: str, login: Path) -> None:
    found = answers_by(login, shell)
    assert found.json is None
    assert problem in found.problem
    assert found.remedy


def test_a_host_is_reachable_with_any_exit_code(login: Path) -> None:
    login.write_text(
        SSH.format(folder=login.parent, shell='[ $host = down ] && exit 255; echo Bye >&2; exit "${host#n}"')
    )
    assert ssh.PLAIN.reachable(["n0", "n3", "down"], 10) == {"n0", "n3"}


def test_a_busy_sshd_is_asked_again_with_few_connections(login: Path, tmp_path: Path) -> None:
    dropped = "echo 'kex_exchange_identification: read: Connection reset by peer' >&2\nexit 255"
    once = f"[ $host = gone ] || mkdir '{tmp_path}'/seen-$host 2>/dev/null || exit 0\n{dropped}"
    login.write_text(SSH.format(folder=tmp_path, shell=once))
    assert ssh.PLAIN.reachable(["n1", "n2", "gone"], 10) == {"n1", "n2"}
    assert len((tmp_path / "asked").read_text().splitlines()) == 6


def test_arguments_of_the_user_precede_those_of_ddl(login: Path, tmp_path: Path) -> None:
    login.write_text(SSH.format(folder=tmp_path, shell="exit 0"))
    ssh.Client(("-p", "2222")).reachable(["n1"], 10)
    assert (tmp_path / "asked").read_text().startswith("-p 2222 -o BatchMode=yes ")


def test_a_user_file_does_not_hide_a_module_of_ddl(tmp_path: Path) -> None:
    (tmp_path / "cli.py").write_text("print('mine')")
    done = subprocess.run(internal.argv("cli.follow.stacks"), cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ssh.unframed(done.stdout) == {}

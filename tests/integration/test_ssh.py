"""`ddl` over real ssh to hosts as sites have them: loud login shells, other ports, own addresses, paths with a space."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import hosts as of_hosts
from tests.cluster.hosts import Done, Hosts
from tests.integration.ddl import ROOT
from tests.integration.parts import needs, require

pytestmark = pytest.mark.timeout(300)

TOLD = "RANK"
SCRIPT = f"""\
import json, os, socket, sys
from mpi4py import MPI
names = sys.argv[1:]
print("{TOLD}", json.dumps([socket.gethostname(), MPI.COMM_WORLD.allreduce(1), [os.environ.get(n) for n in names]]), flush=True)
"""
LOUD = """\
#!/bin/sh
echo "Welcome to $(hostname)"; echo "ssh: connect to host n2 port 22: Connection refused" >&2; printf '{"event": "guard"}'
/bin/sh "$@"
echo Bye; printf Bye >&2
exit 3
"""
NO_SSH = "#!/bin/sh\necho 'ssh was called' >&2; exit 255\n"


@pytest.fixture(scope="module")
def site() -> Iterator[Hosts]:
    """Hosts n1 and n2 for all tests of this file: what a test changes of them, it puts back."""
    require(of_hosts.missing())
    with Hosts(2) as made:
        (made.folder / "script.py").write_text(SCRIPT)
        yield made


def run(site: Hosts, *arguments: str | Path, python: str | Path = sys.executable, **variables: str) -> Done:
    """`ddl` on n1, in the folder of the hosts."""
    command = ["/usr/bin/env", "-C", site.folder, python, "-m", "cli", *arguments]
    return site.run("n1", command, timeout=150, env={"PYTHONPATH": str(ROOT), **variables})


def told(done: Done) -> list[Any]:
    """What each rank of `SCRIPT` told, in the order of hosts."""
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if TOLD in line]
    return sorted(json.loads(line.partition(TOLD)[2]) for line in lines)


def script(site: Hosts, hosts: str, *options: str, names: str = "", **more: Any) -> list[Any]:
    return told(run(site, "run", "--hosts", hosts, "--tee", "all", *options, "script.py", *names.split(), **more))


@pytest.fixture
def shell(site: Hosts) -> Iterator[Hosts]:
    yield site
    site.log_in_by("/bin/sh")


def test_login_shells_of_every_kind(shell: Hosts) -> None:
    """One that prints before, after and on stderr, and ends with a code of its own; csh."""
    needs("mpirun")
    loud = shell.folder / "login" / "sh"
    loud.parent.mkdir()
    loud.write_text(LOUD)
    loud.chmod(0o755)
    for login in (loud, shutil.which("csh")):
        require(None if login else "no csh: scripts/install-test-machine installs tcsh")
        shell.log_in_by(str(login))
        done = run(shell, "run", "--hosts", "n1:1,n2:1", "--tee", "all", "script.py", SHELL=str(login))
        assert told(done) == [["n1", 2, []], ["n2", 2, []]], login
    shell.log_in_by(loud)
    hostfile = shell.hostfile(2, 1)
    found = json.loads(run(shell, "doctor", "--hostfile", hostfile, "--json").stdout)["findings"]
    assert [x["figure"] for x in found if x["check"] == "reach"] == ["over ssh"], found


def test_this_machine_is_known_by_its_addresses_and_names(site: Hosts) -> None:
    """No ssh, and ranks are bound, as without a hostfile."""
    needs("mpirun")
    known = site.folder / "hosts"
    known.write_text(f"{known.read_text()}10.77.0.1 n1.cluster.lan head\n")
    (site.folder / "no-ssh").mkdir()
    (site.folder / "no-ssh" / "ssh").write_text(NO_SSH)
    (site.folder / "no-ssh" / "ssh").chmod(0o755)
    path = f"{site.folder}/no-ssh:{of_hosts.PATH}"
    shown = ["--dry-run", "--output", "out", "script.py"]
    plain = run(site, "run", "--hosts", "localhost:2", *shown).stdout
    for name in ("10.77.0.1", "n1.cluster.lan", "head"):
        line = run(site, "run", "--hosts", f"{name}:2", *shown).stdout
        assert line == plain
        assert script(site, f"{name}:2", PATH=path) == [["n1", 2, []]] * 2, name


def test_variables_of_this_shell_reach_every_host(site: Hosts) -> None:
    needs("mpirun")
    file = site.folder / ".env"
    file.write_text("# for all ranks\nFROM_FILE='two words'\nAPI_TOKEN=hush\n")
    names = "NCCL_DEBUG HF_HOME PYTHONPATH HF_TOKEN FROM_FILE API_TOKEN GIVEN MINE"
    variables = {"NCCL_DEBUG": "INFO", "HF_HOME": "/hf", "HF_TOKEN": "secret", "MINE": "1"}
    options = ["--env-file", ".env", "-x", "GIVEN=a b"]
    arguments = ["run", "--hosts", "n1:1,n2:1", "--tee", "all", *options]
    done = run(site, *arguments, "script.py", *names.split(), **variables)
    everywhere = ["INFO", "/hf", str(ROOT)]
    given = ["two words", "hush", "a b"]
    assert told(done) == [
        ["n1", 2, [*everywhere, "secret", *given, "1"]],
        ["n2", 2, [*everywhere, None, *given, None]],
    ]
    assert "not handed to other hosts, as the name says that it is secret: HF_TOKEN; -x HF_TOKEN does" in done.stderr
    shown = run(site, *arguments, "--dry-run", "script.py", **variables)
    assert "hush" not in shown.stdout + shown.stderr
    assert "-x API_TOKEN" in shown.stdout


def test_another_port_and_user_for_ssh(site: Hosts) -> None:
    needs("mpirun")
    needs("horovod")
    site.listen_at("n2", 2222)
    try:
        refused = run(site, "run", "--hosts", "n1:1,n2:1", "script.py")
        assert "Connection refused" in refused.stderr
        expected = [["n1", 2, []], ["n2", 2, []]]
        assert script(site, "n[1-2]:1", "--ssh-args", "-p 2222") == expected
        assert script(site, "n1:1,n2:1", PRTE_MCA_plm_ssh_args="-p 2222") == expected
        file = site.folder / "logins"
        file.write_text("n1\nroot@n2 port=2222\n")
        assert told(run(site, "run", "--hostfile", file, "--tee", "all", "script.py")) == expected
        trial = run(site, "doctor", "--hostfile", file, "--run", "--json")
        found = {x["check"]: x for x in json.loads(trial.stdout)["findings"] if x["check"].startswith(("run", "reach"))}
        assert {check: x["level"] for check, x in found.items() if check != "run horovodrun/mpi"} == {
            "reach": "ok",
            "run mpirun/mpi": "ok",
            "run mpirun/horovod": "ok",
            "run horovodrun/horovod": "error",
        }, found
        assert "-l" in found["run horovodrun/horovod"]["figure"]
    finally:
        site.listen_at("n2", 22)

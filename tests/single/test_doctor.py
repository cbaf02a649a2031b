"""The judgement of each check, and the reports of findings."""

from __future__ import annotations

import json
import os
import re
import resource
import sys
import time
from dataclasses import asdict
from ipaddress import IPv4Interface
from pathlib import Path
from typing import Any

import pytest

from cli.doctor import examine as _examine
from cli.doctor import hosts as _hosts
from cli.doctor import python, report, trial
from cli.doctor.base import Check, Finding, Level, Row
from cli.doctor.checks import container, cpus, gpus, horovod, limits, mpi, network, shm, slurm, torch
from cli.doctor.checks.network import Interface
from cli.doctor.examine import examine, examine_hosts, load
from cli.doctor.library import Library
from cli.hosts.hostfile import Host
from cli.launch.flavor import Flavor, recognise
from cli.remote.ssh import framed
from hvd_train.config import plugins
from hvd_train.errors import UserError
from tests.single.test_flavor import HYDRA, MPICH_LIBRARY, OPEN_MPI_4, OPEN_MPI_5, OPEN_MPI_5_LIBRARY

ROOT = Path(__file__).parents[2]
NAMES = plugins.names("cli.doctor.checks")


@pytest.mark.parametrize("name", NAMES)
def test_a_check_has_a_summary_and_a_row_in_the_documentation(name: str) -> None:
    assert isinstance(load(name), Check)
    assert plugins.summary("cli.doctor.checks", name)
    rows = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs" / "doctor.md").read_text(), re.MULTILINE)
    assert rows == NAMES


def test_findings_are_json() -> None:
    found = examine({name: {} for name in ("container", "cpus", "limits", "network", "python", "shm")})
    decoded = json.loads(json.dumps({name: asdict(finding) for name, finding in found.items()}))
    assert {name: Finding(**finding) for name, finding in decoded.items()} == found
    assert found["python"].facts["executable"] == sys.executable
    assert found["cpus"].facts["processors"] == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import os; os.abort()", "killed by SIGABRT"),
        ("import os; os.kill(os.getpid(), 11)", "killed by SIGSEGV"),
        ("raise RuntimeError('first\\nlibmpi.so: no such file')", "RuntimeError: first"),
        ("import sys; sys.exit(3)", "exit code 3"),
        ("import sys; sys.exit('the end')", "the end"),
    ],
)
def test_the_reason_why_a_process_gives_no_answer(source: str, reason: str) -> None:
    with pytest.raises(python.ProbeFailed) as caught:
        python.ask(source)
    assert str(caught.value) == reason


def test_a_process_that_hangs_is_killed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(python, "SECONDS", 1)
    with pytest.raises(python.ProbeFailed, match="no answer within 1 seconds"):
        python.ask(
            f"import os, pathlib, time; pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid())); time.sleep(60)"
        )
    assert not Path("/proc", (tmp_path / "pid").read_text()).exists()


def test_output_of_an_import_is_not_the_answer() -> None:
    assert python.ask("print('welcome'); print('{\"a\": 1}')") == {"a": 1}


def test_a_user_error_and_an_os_error_become_findings(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong() -> Finding:
        raise UserError("no mpirun here; install one")

    def missing() -> Finding:
        raise FileNotFoundError(2, "No such file or directory", "/dev/shm")

    checks = {"a": Check(wrong), "b": Check(missing)}
    monkeypatch.setattr(_examine, "load", lambda name, options=None: checks[name])
    found = examine({"a": {}, "b": {}})
    assert found["a"] == Finding("error", "no mpirun here", "install one")
    assert found["b"].level == "error"
    assert "/dev/shm" in found["b"].figure


@pytest.mark.parametrize(
    ("size", "free", "level", "remedy"),
    [
        (64, 64, "warning", "--shm-size"),
        (64, 15, "error", "--shm-size"),
        (8, 8, "error", "--shm-size"),
        (65, 65, "ok", ""),
        (8000, 64, "warning", "ls -l /dev/shm"),
        (8000, 15, "error", "ls -l /dev/shm"),
    ],
)
def test_shm(size: int, free: int, level: Level, remedy: str) -> None:
    found = shm.judge(size, free)
    assert found.level == level
    assert remedy in found.remedy
    assert bool(found.remedy) == (level != "ok")
    assert found.facts == {"size_mib": size, "free_mib": free}


@pytest.mark.parametrize(
    ("files", "memory", "rdma", "level", "remedy"),
    [
        (1023, 8 << 20, False, "warning", "ulimit -n 4096"),
        (1024, 8 << 20, False, "ok", ""),
        (resource.RLIM_INFINITY, 8 << 20, True, "warning", "memlock unlimited"),
        (1024, resource.RLIM_INFINITY, True, "ok", ""),
    ],
)
def test_limits(files: int, memory: int, rdma: bool, level: Level, remedy: str) -> None:
    found = limits.judge(files, memory, rdma)
    assert found.level == level
    assert remedy in found.remedy


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2),
    ],
)
def test_the_quota_of_a_cgroup(files: dict[str, str], expected: float | None, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cpus.quota(tmp_path) == expected


@pytest.mark.parametrize(
    ("quota", "environment", "level", "words"),
    [
        (None, {}, "ok", "2 of 4 CPUs, 2 cores: with --np 2, 2 threads a rank"),
        (2.0, {"OMP_NUM_THREADS": "2"}, "ok", "2 threads a rank"),
        (1.5, {}, "warning", "quota of the container is 1.5 CPUs"),
        (0.5, {}, "warning", "is 0.5 CPUs"),
        (None, {"OMP_NUM_THREADS": "3"}, "warning", "OMP_NUM_THREADS=3 gives every rank more threads"),
    ],
)
def test_cpus(
    quota: float | None, environment: dict[str, str], level: Level, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    found = cpus.judge(2, 2, quota, environment)
    assert found.level == level
    assert words in found.figure
    assert quota is None or quota >= 2 or "--np 1 " in found.remedy


ETH0 = Interface("eth0", IPv4Interface("10.0.0.5/24"), False)
DOCKER0 = Interface("docker0", IPv4Interface("172.17.0.1/16"), True)
VIRBR0 = Interface("virbr0", IPv4Interface("172.17.8.1/24"), True)
ETH1 = Interface("eth1", IPv4Interface("10.0.0.6/24"), False)


@pytest.mark.parametrize(
    ("found", "route", "level", "words"),
    [
        ([], None, "ok", "loopback"),
        ([ETH0, DOCKER0], "eth0", "ok", "default route over eth0"),
        ([ETH0, ETH1], None, "ok", "no default route"),
        (
            [ETH0, DOCKER0, VIRBR0],
            "eth0",
            "warning",
            "docker0 172.17.0.1/16 and virbr0 172.17.8.1/24 are in one subnet",
        ),
        ([VIRBR0, Interface("eth0", IPv4Interface("172.17.8.9/24"), False)], None, "warning", "and eth0 172.17.8.9/24"),
    ],
)
def test_network(found: list[Interface], route: str | None, level: Level, words: str) -> None:
    finding = network.judge(found, route)
    assert finding.level == level
    assert words in finding.figure
    if level == "warning":
        assert finding.remedy.endswith("ddl run --iface eth0")
    assert finding.facts["bridges"] == [str(i.address.ip) for i in found if i.bridge]


def test_the_default_route_of_the_lowest_metric() -> None:
    head = "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n"
    rows = "wlan0 00000000 01 0003 0 0 600 00000000 0 0 0\neth0 00000000 01 0003 0 0 100 00000000 0 0 0\n"
    assert network.default_route(head + rows + "eth1 0000000A 00 0001 0 0 1 00FFFFFF 0 0 0\n") == "eth0"
    assert network.default_route(head) is None


@pytest.mark.parametrize(
    ("visible", "level", "words"),
    [
        (None, "ok", "2 x H100, 2 visible to each rank"),
        ("1", "ok", "1 visible"),
        ("0,1", "ok", "2 visible"),
        ("GPU-1a2b", "ok", "1 visible"),
        ("0,2", "error", "names GPU 2"),
        ("1,1", "error", "names a GPU twice"),
        ("", "warning", "hides all"),
        ("-1", "warning", "hides all"),
    ],
)
def test_gpus(visible: str | None, level: Level, words: str) -> None:
    found = gpus.judge(["H100", "H100"], visible)
    assert found.level == level
    assert words in found.figure
    assert found.remedy == ("" if level == "ok" else "unset CUDA_VISIBLE_DEVICES")


@pytest.mark.parametrize(
    ("cuda", "seen", "devices", "hidden", "level", "words"),
    [
        (None, 0, 0, False, "ok", "2.13.0 for CPUs only"),
        (None, 0, 2, False, "warning", "has 2 GPUs"),
        ("12.8", 0, 2, False, "error", "for CUDA 12.8, which finds none of 2 GPUs"),
        ("12.8", 0, 2, True, "ok", "for CUDA 12.8"),
        ("12.8", 2, 2, False, "ok", "finds 2 of 2 GPUs"),
    ],
)
def test_torch(cuda: str | None, seen: int, devices: int, hidden: bool, level: Level, words: str) -> None:
    found = torch.judge({"torch": "2.13.0", "cuda": cuda, "gpus": seen}, devices, hidden, "pip install torch")
    assert found.level == level
    assert words in found.figure


HOROVOD = {
    "horovod": "0.28.1",
    "controllers": ["mpi", "gloo"],
    "operations": ["mpi", "gloo"],
    "mpi_libraries": ["/venv/lib/libmpi.so.40"],
    "torch": "2.13.0",
    "built_for": "2.13.0",
}


@pytest.mark.parametrize(
    ("change", "gpu", "level", "words"),
    [
        ({}, False, "ok", "0.28.1 with mpi and gloo; operations mpi, gloo; for torch 2.13.0"),
        ({"built_for": None}, False, "ok", "0.28.1"),
        ({"built_for": "2.0.1"}, False, "warning", "built for torch 2.0.1, but torch is 2.13.0"),
        (
            {"mpi_libraries": ["/a/libmpi.so.12", "/b/libmpi.so.40"]},
            False,
            "error",
            "/a/libmpi.so.12 and /b/libmpi.so.40",
        ),
        ({"controllers": ["gloo"]}, False, "warning", "mpirun and srun cannot start it"),
        ({}, True, "warning", "pass through host memory"),
        ({"operations": ["nccl", "mpi"]}, True, "ok", "nccl, mpi"),
    ],
)
def test_horovod(change: dict[str, Any], gpu: bool, level: Level, words: str) -> None:
    found = horovod.judge({**HOROVOD, **change}, gpu)
    assert found.level == level
    assert words in found.figure
    assert ("scripts/install-horovod" in found.remedy) == (level != "ok")


def loaded(text: str) -> Library:
    return Library("4.1.2", text, *recognise(text))


@pytest.mark.parametrize(
    ("mpirun", "library", "level"),
    [(OPEN_MPI_5, OPEN_MPI_5_LIBRARY, "ok"), (OPEN_MPI_4, OPEN_MPI_5_LIBRARY, "warning"), (HYDRA, MPICH_LIBRARY, "ok")],
)
def test_mpi(mpirun: str, library: str, level: Level) -> None:
    found = mpi.judge(Flavor(*recognise(mpirun), Path("/usr/bin/mpirun")), loaded(library))
    assert found.level == level
    assert found.facts["mpi"] == str(loaded(library))


def test_an_mpirun_of_another_kind_is_refused() -> None:
    with pytest.raises(UserError, match="every rank would be in a world of size 1"):
        mpi.judge(Flavor(*recognise(HYDRA), Path("/usr/bin/mpirun")), loaded(OPEN_MPI_5_LIBRARY))


@pytest.mark.parametrize(
    ("plugins", "job", "level", "words"),
    [
        (
            ["none", "pmi2", "pmix", "pmix_v4"],
            "7",
            "ok",
            "in job 7, with none, pmi2, pmix, pmix_v4: ddl uses srun --mpi=pmix_v4",
        ),
        (["none", "pmi2"], None, "warning", "outside an allocation: Open MPI needs the MPI plugin pmix of srun"),
    ],
)
def test_slurm(plugins: list[str], job: str | None, level: Level, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm, "library", lambda: loaded(OPEN_MPI_5_LIBRARY))
    found = slurm.judge("22.05.8", plugins, job)
    assert found.level == level
    assert words in found.figure
    assert ("--launcher mpirun" in found.remedy) == (level == "warning")


@pytest.mark.parametrize(
    ("mark", "environment", "expected"),
    [
        (None, {}, None),
        (".dockerenv", {}, "docker"),
        ("run/.containerenv", {}, "podman"),
        (None, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, "kubernetes"),
        (None, {"container": "lxc"}, "lxc"),
    ],
)
def test_containers(mark: str | None, environment: dict[str, str], expected: str | None, tmp_path: Path) -> None:
    if mark:
        (tmp_path / mark).parent.mkdir(exist_ok=True)
        (tmp_path / mark).touch()
    assert container.kind(tmp_path, environment) == expected
    assert container.judge(expected, root=False).level == "ok"
    assert container.judge(expected, root=True).level == ("warning" if expected is None else "ok")


def versions(**facts: str | None) -> Finding:
    return Finding("ok", "", facts=facts)


def test_a_fact_that_differs_between_hosts_is_an_error_with_a_remedy() -> None:
    here = {"torch": versions(torch="2.13.0+cpu", cuda=None), "python": versions(python="3.11.7", ddl="0.1.0")}
    n2 = {"torch": versions(torch="2.4.0", cuda="12.4"), "python": versions(python="3.11.7", ddl="0.2.0")}
    found = _hosts.conflicts({"n1": here, "n2": n2, "n3": {"reach": Finding("error", "refused")}}, here)
    assert [(x.host, x.check, x.finding.level, x.finding.figure) for x in found] == [
        ("n2", "torch", "error", "torch is 2.4.0, and 2.13.0+cpu here"),
        ("n2", "torch", "error", "cuda is 12.4, and missing here"),
        ("n2", "python", "error", "ddl is 0.2.0, and 0.1.0 here"),
    ]
    assert found[0].finding.remedy == f"ssh n2 {sys.executable} -m pip install torch==2.13.0"
    assert sys.prefix in found[2].finding.remedy


def test_one_address_on_two_hosts_is_reported_once() -> None:
    here = {"network": network.judge([ETH0], "eth0")}
    with_docker = {"network": network.judge([ETH0, DOCKER0], "eth0")}
    with_libvirt = {"network": network.judge([ETH0, VIRBR0], "eth0")}
    found = {"n1": here, "n2": with_docker, "n3": with_docker, "n4": with_docker, "n5": with_libvirt}
    (line,) = _hosts.conflicts(found, here)
    assert (line.host, line.check, line.finding.level) == ("n3", "network", "warning")
    assert "172.17.0.1 (bridges) is an address of n2 too" in line.finding.figure
    assert line.finding.remedy.startswith("ddl run --iface ")


def test_the_table_of_hosts() -> None:
    n1 = {"torch": versions(torch="2.13.0", cuda=None), "shm": Finding("ok", "")}
    table = report.table({"n1": n1, "node-22": {"reach": Finding("error", "refused")}})
    assert table.splitlines() == [
        "host     reached  torch   cuda",
        "n1       yes      2.13.0  -",
        "node-22  no       -       -",
    ]


def test_lines_and_json() -> None:
    lines = [
        Row("vm", "shm", Finding("error", "full", "rm", {"free_mib": 0})),
        Row("n2", "ssh", Finding("ok", "8.4")),
    ]
    assert [report.text(lines[0]), report.text(lines[1], named=True)] == [
        "\x1b[31merror   \x1b[0m shm          full  -> rm",
        "\x1b[32mok      \x1b[0m ssh          n2  8.4",
    ]
    assert json.loads(report.to_json(lines)) == {
        "ok": False,
        "errors": 1,
        "warnings": 0,
        "findings": [
            {
                "host": "vm",
                "check": "shm",
                "level": "error",
                "figure": "full",
                "remedy": "rm",
                "facts": {"free_mib": 0},
            },
            {"host": "n2", "check": "ssh", "level": "ok", "figure": "8.4", "remedy": "", "facts": {}},
        ],
    }


@pytest.fixture
def fake_ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty program `ssh`, first on PATH, for the test to write."""
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / "ssh").touch(mode=0o755)
    return tmp_path / "ssh"


def test_many_slow_hosts_are_examined_at_once(fake_ssh: Path) -> None:
    fake_ssh.write_text("#!/bin/sh\nsleep 2; echo 'ssh: connect to host: Connection refused' >&2; exit 255\n")
    hosts = [Host(f"slow{number}", 1) for number in range(64)]
    began = time.monotonic()
    found = examine_hosts(hosts, {"python": {}}, {})
    assert time.monotonic() - began < 20, "one after the other takes 128 s"
    assert list(found) == [host.name for host in hosts]
    assert found["slow63"]["reach"].remedy == "start sshd on slow63"


def test_a_host_that_never_answers_times_out(fake_ssh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_ssh.write_text("#!/bin/sh\nexec sleep 60\n")
    monkeypatch.setattr(_examine, "HOST_SECONDS", 1)
    found = examine_hosts([Host("stuck", 1), Host("localhost", 1)], {"python": {}}, {"python": versions(python="3")})
    assert found["stuck"]["reach"].figure == "no answer within 1 seconds"
    assert found["localhost"] == {"python": versions(python="3")}, "this machine is not reached over ssh"


def test_output_of_a_login_script_is_ignored(fake_ssh: Path) -> None:
    answer = framed({"python": asdict(versions(python="3.11.7"))})
    fake_ssh.write_text(f"#!/bin/sh\n[ $2 = BatchMode=yes ] && cat <<'END'\nWelcome!\n{answer}\nEND\n")
    found = examine_hosts([Host("n2", 1)], {"python": {}}, {})["n2"]
    assert found == {"reach": Finding("ok", "over ssh"), "python": versions(python="3.11.7")}


def test_the_remedy_for_a_host_without_ddl(fake_ssh: Path) -> None:
    fake_ssh.write_text("#!/bin/sh\necho \"/venv/bin/python: can't open file '/venv/internal.py'\" >&2; exit 1\n")
    found = examine_hosts([Host("n2", 1)], {"python": {}}, {})["n2"]["reach"]
    assert found.figure == "/venv/bin/python: can't open file '/venv/internal.py'"
    assert found.remedy == f"install ddl on n2: in a checkout of ddl there, run {sys.executable} -m pip install -e ."


def test_the_figures_of_a_trial() -> None:
    def case(name: str, rounds: list[float]) -> dict[str, Any]:
        return {"case": name, "variants": {"ddl_mpi": {"rounds": rounds}}, "unavailable": {}}

    found = trial.judge(
        "mpirun", "mpi", {"cases": [case("67108864", [0.5, 0.25, 9]), case("4096", [3e-5, 1e-5, 2e-5])]}
    )
    assert found.figure == "64 MiB at 0.125 GiB/s, 4 KiB in 20 us"
    assert found.facts["gib_per_second"] == 0.125
    missing = {"case": "4096", "variants": {}, "unavailable": {"ddl_mpi": "ImportError: no"}}
    assert trial.judge("mpirun", "mpi", {"cases": [missing]}) == Finding("error", "ImportError: no")


def test_trials_run_on_the_launchers_and_engines_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "trial", lambda launcher, engine, *_: Finding("ok", f"{launcher} {engine}"))
    monkeypatch.setattr(trial, "find_spec", lambda name: None)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    names = [name for name, _ in trial.trials()]
    hosts = (Host("n1", 2), Host("n2", 2))
    monkeypatch.setattr(trial, "trial", lambda launcher, engine, *where: Finding("ok", f"{where}"))
    assert dict(trial.trials(hosts, "-p 2"))["mpirun/mpi"].figure == f"{(hosts, '-p 2')}"
    assert trial._where(hosts, "-p 2") == ["--hosts", "n1:1,n2:1", "--ssh-args", "-p 2"]
    assert "mpirun/mpi" in names
    assert not any("srun" in name or name.endswith("/horovod") for name in names)

"""The whole command line of every launcher and flavor; those for this machine also run."""

from __future__ import annotations

import dataclasses
import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from cli.hosts.allocation import Allocation
from cli.hosts.hostfile import Host, parse_hosts
from cli.hosts.machine import Machine
from cli.hosts.network import Network
from cli.launch import interface as _interface
from cli.launch.elastic import Elastic
from cli.launch.flavor import Flavor
from cli.launch.job import Command, Job
from cli.launch.launchers import local, srun
from cli.launch.launchers.horovodrun import Horovodrun
from cli.launch.launchers.mpirun import Mpirun
from hvd_train.comm import addresses
from hvd_train.config import plugins
from hvd_train.errors import UserError
from tests.integration.parts import needs

MPIRUN = Path("/opt/mpi/bin/mpirun")
FLAVORS = {
    "openmpi4": Flavor("openmpi", (4, 1, 8), MPIRUN),
    "openmpi5": Flavor("openmpi", (5, 0, 11), MPIRUN),
    "mpich": Flavor("mpich", (5, 0, 2), MPIRUN),
    "intel": Flavor("intel", (2021, 18), MPIRUN),
    "cray": Flavor("cray", (8, 1), MPIRUN),
}
FOUR = Machine("vm", root=False, packages=(4,))
ROOT = dataclasses.replace(FOUR, root=True)
ALLOCATED = dataclasses.replace(FOUR, allocation=Allocation("12", (Host("n1", 2), Host("n2", 2)), 1, (4, 4)))
ONE_NODE = dataclasses.replace(FOUR, allocation=Allocation("12", (Host("n1", 2),), 2, (4,)))
NARROW = dataclasses.replace(FOUR, allocation=Allocation("12", (Host("n1", 2),), 1, (3,)))

PROGRAM = ("/venv/bin/python", "-m", "mpi4py", "-m", "hvd_train", '{"a": [1, "it\'s; $HOME"]}')
JOB = Job(PROGRAM, world_size=2, engine="mpi")
ALONE = dataclasses.replace(JOB, world_size=1)
CROWD = dataclasses.replace(JOB, world_size=8)
REMOTE = dataclasses.replace(JOB, world_size=4, hosts=(Host("n1", 2), Host("n2", 2)))
SQUEEZED = dataclasses.replace(REMOTE, world_size=6, oversubscribe=True)
VARIABLES = dataclasses.replace(JOB, environment={"A": "1, 2"}, forward=("B",))
FAR = dataclasses.replace(
    REMOTE, forward=("B", "A"), environment={"A": "1"}, ssh=("-p", "2222"), words=("--report-bindings", "a b")
)
HOROVOD = dataclasses.replace(JOB, engine="horovod")
HOROVOD_REMOTE = dataclasses.replace(REMOTE, engine="horovod")


def bound(job: Job, to: str) -> Job:
    return dataclasses.replace(job, bind=to)


def line(command: Command, job: Job = JOB) -> str:
    """Return the command line without the program at its end."""
    assert command.argv[-len(job.program) :] == job.program
    return shlex.join(command.argv[: -len(job.program)])


KEEPALIVE = "'-o ServerAliveInterval=5 -o ServerAliveCountMax=2'"
SSH_OF = {"mpich": "HYDRA_LAUNCHER_EXTRA_ARGS", "intel": "I_MPI_HYDRA_BOOTSTRAP_EXEC_EXTRA_ARGS"}
MPIRUN_LINES = [
    ("openmpi5", FOUR, JOB, "--np 2 --host localhost:2 --map-by slot:PE=2 --bind-to core --mca osc '^ucx'"),
    ("openmpi4", FOUR, JOB, "--np 2 --host localhost:2 --map-by slot:PE=2 --bind-to core"),
    ("mpich", FOUR, JOB, "-n 2 -hosts localhost:2 -bind-to core:2"),
    ("intel", FOUR, JOB, "-n 2 -ppn 2 -hosts localhost"),
    (
        "openmpi5",
        ROOT,
        ALONE,
        "--allow-run-as-root --np 1 --host localhost:1 --bind-to none --mca osc '^ucx'",
    ),
    ("openmpi4", ROOT, ALONE, "--allow-run-as-root --np 1 --host localhost:1 --bind-to none"),
    ("mpich", ROOT, ALONE, "-n 1 -hosts localhost:1 -bind-to none"),
    (
        "openmpi5",
        FOUR,
        CROWD,
        "--np 8 --host localhost:8 --bind-to none --mca osc '^ucx' --mca mpi_yield_when_idle 1",
    ),
    ("mpich", FOUR, CROWD, "-n 8 -hosts localhost:8 -bind-to none"),
    ("intel", FOUR, CROWD, "-n 8 -ppn 8 -hosts localhost -genv I_MPI_PIN 0"),
    (
        "openmpi5",
        FOUR,
        bound(CROWD, "numa"),
        "--np 8 --host localhost:8 --bind-to numa:overload-allowed --mca osc '^ucx' --mca mpi_yield_when_idle 1",
    ),
    (
        "openmpi5",
        FOUR,
        REMOTE,
        "--np 4 --host n1:2,n2:2 --bind-to none --mca osc '^ucx' --mca btl_tcp_flags send,inplace "
        f"--mca mpi_yield_when_idle 1 --prtemca plm_ssh_args {KEEPALIVE}",
    ),
    (
        "openmpi4",
        FOUR,
        REMOTE,
        f"--np 4 --host n1:2,n2:2 --bind-to none --mca mpi_yield_when_idle 1 --mca plm_rsh_args {KEEPALIVE}",
    ),
    ("mpich", FOUR, REMOTE, "-n 4 -hosts n1:2,n2:2 -bind-to none"),
    ("intel", FOUR, REMOTE, "-n 4 -ppn 2 -hosts n1,n2"),
    (
        "openmpi5",
        FOUR,
        SQUEEZED,
        "--np 6 --host n1:3,n2:3 --map-by :OVERSUBSCRIBE --bind-to none --mca osc '^ucx' "
        f"--mca btl_tcp_flags send,inplace --mca mpi_yield_when_idle 1 --prtemca plm_ssh_args {KEEPALIVE}",
    ),
    ("mpich", FOUR, SQUEEZED, "-n 6 -hosts n1:3,n2:3 -bind-to none"),
    ("intel", FOUR, SQUEEZED, "-n 6 -ppn 3 -hosts n1,n2 -genv I_MPI_PIN 0"),
    ("openmpi5", FOUR, bound(JOB, "core"), "--np 2 --host localhost:2 --bind-to core --mca osc '^ucx'"),
    ("openmpi5", FOUR, bound(JOB, "none"), "--np 2 --host localhost:2 --bind-to none --mca osc '^ucx'"),
    ("mpich", FOUR, bound(JOB, "socket"), "-n 2 -hosts localhost:2 -bind-to socket"),
    ("intel", FOUR, bound(JOB, "numa"), "-n 2 -ppn 2 -hosts localhost -genv I_MPI_PIN_DOMAIN numa"),
    ("intel", FOUR, bound(JOB, "none"), "-n 2 -ppn 2 -hosts localhost -genv I_MPI_PIN 0"),
    (
        "openmpi5",
        FOUR,
        VARIABLES,
        "--np 2 --host localhost:2 --map-by slot:PE=2 --bind-to core --mca osc '^ucx' -x 'A=1, 2' -x B",
    ),
    ("mpich", FOUR, VARIABLES, "-n 2 -hosts localhost:2 -bind-to core:2 -genv A '1, 2'"),
    ("intel", FOUR, VARIABLES, "-n 2 -ppn 2 -hosts localhost -genv A '1, 2'"),
    (
        "openmpi5",
        ALLOCATED,
        JOB,
        "--np 2 --bind-to none --mca osc '^ucx' --mca btl_tcp_flags send,inplace --mca mpi_yield_when_idle 1",
    ),
    ("openmpi5", ONE_NODE, JOB, "--np 2 --bind-to none --mca osc '^ucx'"),
    ("openmpi5", NARROW, JOB, "--np 2 --bind-to none --mca osc '^ucx'"),
    ("openmpi5", NARROW, HOROVOD, "--np 2 --bind-to none --mca osc '^ucx' --mca mpi_yield_when_idle 1"),
    (
        "openmpi5",
        FOUR,
        FAR,
        "--np 4 --host n1:2,n2:2 --bind-to none --mca osc '^ucx' --mca btl_tcp_flags send,inplace "
        f"--mca mpi_yield_when_idle 1 --prtemca plm_ssh_args '-p 2222 {KEEPALIVE[1:]} -x A=1 -x B --report-bindings 'a b'",
    ),
    (
        "openmpi4",
        FOUR,
        FAR,
        "--np 4 --host n1:2,n2:2 --bind-to none --mca mpi_yield_when_idle 1 --mca plm_rsh_args "
        f"'-p 2222 {KEEPALIVE[1:]} -x A=1 -x B --report-bindings 'a b'",
    ),
    ("mpich", FOUR, FAR, "-n 4 -hosts n1:2,n2:2 -bind-to none -genv A 1 --report-bindings 'a b'"),
    ("intel", FOUR, FAR, "-n 4 -ppn 2 -hosts n1,n2 -genv A 1 --report-bindings 'a b'"),
    ("mpich", ALLOCATED, JOB, "-n 2 -bind-to none"),
    ("intel", ALLOCATED, JOB, "-n 2"),
]


@pytest.mark.parametrize(("flavor", "machine", "job", "expected"), MPIRUN_LINES)
def test_mpirun(flavor: str, machine: Machine, job: Job, expected: str) -> None:
    command = Mpirun(FLAVORS[flavor], machine, {}).command(job)
    assert line(command) == f"{MPIRUN} {expected}"
    ssh = {SSH_OF[flavor]: "-p 2222"} if job.ssh and flavor in SSH_OF else {}
    assert command.environment == ({"OMPI_MCA_btl": "^ofi"} if flavor == "openmpi5" else ssh)
    assert command.notes == (("8 ranks share 4 cores",) if job.world_size == 8 else ())


def test_transports_of_the_user_stay() -> None:
    of_rank = dataclasses.replace(JOB, environment={"OMPI_MCA_btl": "self,tcp"})
    assert Mpirun(FLAVORS["openmpi5"], FOUR, {"OMPI_MCA_btl": "self,sm"}).command(JOB).environment == {}
    assert Mpirun(FLAVORS["openmpi5"], FOUR, {}).command(of_rank).environment == {}


def test_mpirun_refuses_what_a_flavour_cannot_do() -> None:
    uneven = dataclasses.replace(REMOTE, hosts=(Host("n1", 1), Host("n2", 3)))
    with pytest.raises(UserError, match="unequal slots: n1:1,n2:3"):
        Mpirun(FLAVORS["intel"], FOUR).command(uneven)
    with pytest.raises(UserError, match=r"Cray MPICH 8\.1 .* --launcher srun"):
        Mpirun(FLAVORS["cray"], FOUR).command(JOB)
    with pytest.raises(UserError, match="cannot pass 'ProxyCommand a b' to ssh, because it contains a space"):
        Mpirun(FLAVORS["openmpi5"], FOUR).command(dataclasses.replace(REMOTE, ssh=("-o", "ProxyCommand a b")))
    with pytest.raises(UserError, match="2 too few"):
        Mpirun(FLAVORS["openmpi5"], FOUR).command(dataclasses.replace(REMOTE, world_size=6))


YIELD = "--mca osc '\"'\"'^ucx'\"'\"' --mca mpi_yield_when_idle 1"
HOROVODRUN_LINES = [
    (
        "openmpi5",
        HOROVOD,
        "--mpi '--binding-args=--bind-to none --map-by slot' '--mpi-args=--mca osc '\"'\"'^ucx'\"'\"''"
        " -np 2 -H localhost:2",
    ),
    ("openmpi4", JOB, "--mpi '--binding-args=--bind-to none --map-by slot' -np 2 -H localhost:2"),
    (
        "openmpi5",
        bound(dataclasses.replace(HOROVOD, world_size=8), "core"),
        "--mpi '--binding-args=--bind-to core:overload-allowed --map-by slot' "
        f"'--mpi-args={YIELD}' -np 8 -H localhost:8",
    ),
    (
        "openmpi4",
        HOROVOD_REMOTE,
        "--mpi '--binding-args=--bind-to none --map-by slot' '--mpi-args=--mca mpi_yield_when_idle 1 --mca plm_rsh_args "
        "'\"'\"'-o ServerAliveInterval=5 -o ServerAliveCountMax=2'\"'\"'' -np 4 -H n1:2,n2:2",
    ),
    (
        "openmpi5",
        dataclasses.replace(
            HOROVOD_REMOTE,
            forward=("A", "CUDA_VISIBLE_DEVICES"),
            ssh=("-p", "2222", "-i", "key"),
            words=("--verbose",),
            network=Network("eth0"),
        ),
        "--mpi '--binding-args=--bind-to none --map-by slot' '--mpi-args=--mca osc '\"'\"'^ucx'\"'\"' "
        "--mca btl_tcp_flags send,inplace --mca mpi_yield_when_idle 1 "
        "--prtemca plm_ssh_args '\"'\"'-p 2222 -i key -o ServerAliveInterval=5 -o ServerAliveCountMax=2'\"'\"' "
        "--prtemca prte_if_include eth0 -x CUDA_VISIBLE_DEVICES' "
        "-np 4 -H n1:2,n2:2 --network-interfaces eth0 -p 2222 -i key --verbose",
    ),
    ("mpich", HOROVOD, "--mpi -np 2 -H localhost:2"),
]


def horovodrun(flavor: str | None, machine: Machine = FOUR) -> Horovodrun:
    return Horovodrun(Path("/venv/bin/horovodrun"), FLAVORS[flavor] if flavor else None, machine, "/usr/bin")


@pytest.mark.parametrize(("flavor", "job", "expected"), HOROVODRUN_LINES)
def test_horovodrun_through_mpirun(flavor: str, job: Job, expected: str) -> None:
    command = horovodrun(flavor).command(job)
    assert line(command) == f"/venv/bin/horovodrun {expected}"
    assert command.environment == {"PATH": "/opt/mpi/bin:/usr/bin"}


def test_horovodrun_leaves_a_path_alone_that_finds_the_right_mpirun(tmp_path: Path) -> None:
    (tmp_path / "mpirun").touch(mode=0o755)
    flavor = dataclasses.replace(FLAVORS["openmpi5"], path=tmp_path / "mpirun")
    launcher = Horovodrun(Path("/venv/bin/horovodrun"), flavor, FOUR, str(tmp_path))
    assert launcher.command(VARIABLES).environment == {"A": "1, 2"}


def test_horovodrun_over_gloo_needs_no_mpi() -> None:
    command = horovodrun(None).command(dataclasses.replace(HOROVOD, environment={"A": "1"}))
    assert command.argv[:6] == ("/venv/bin/horovodrun", "--gloo", "-np", "2", "-H", "localhost:2")
    assert command.argv[6:] == ("/venv/bin/python", "-m", "hvd_train", PROGRAM[-1])
    assert command.environment == {"A": "1"}
    other = dataclasses.replace(HOROVOD, program=("/venv/bin/python", "train.py"))
    assert horovodrun(None).command(other).argv[6:] == other.program


@pytest.mark.parametrize(
    ("elastic", "hosts", "expected"),
    [
        (Elastic(Path("/x y/hosts"), 1), "", "--min-np 1 --host-discovery-script \"'/x y/hosts'\" --slots-per-host 1"),
        (
            Elastic(Path("/hosts"), 2, 4),
            "n1:2",
            "--min-np 2 --max-np 4 --host-discovery-script /hosts --slots-per-host 1",
        ),
        (
            Elastic(Path("/hosts"), 2),
            "localhost:2",
            "--min-np 2 --host-discovery-script /hosts --slots-per-host 1 --network-interfaces lo",
        ),
    ],
    ids=["no host yet", "another", "this machine"],
)
def test_horovodrun_elastic_goes_over_gloo(elastic: Elastic, hosts: str, expected: str) -> None:
    places = parse_hosts(hosts, "") if hosts else ()
    command = horovodrun("openmpi5").command(dataclasses.replace(HOROVOD, elastic=elastic, hosts=places))
    assert list(command.argv[:-4]) == shlex.split(f"/venv/bin/horovodrun --gloo -np 2 {expected}")
    assert command.argv[-4:] == ("/venv/bin/python", "-m", "hvd_train", PROGRAM[-1])
    assert [note.partition(",")[0] for note in command.notes] == ["ranks use the interface lo"] * (
        hosts == "localhost:2"
    )


@pytest.mark.parametrize(
    ("flavor", "machine", "job", "words"),
    [
        (None, FOUR, dataclasses.replace(JOB, elastic=Elastic(Path("/hosts"), 1)), "use --engine horovod"),
        (None, FOUR, JOB, "--engine mpi would be in a world of size 1; use --engine horovod"),
        (
            None,
            FOUR,
            dataclasses.replace(HOROVOD_REMOTE, ssh=("-J", "b")),
            "passes only -p and -i to ssh, not '-J'",
        ),
        (None, FOUR, bound(HOROVOD, "core"), "over Gloo does not support --bind"),
        ("mpich", FOUR, bound(HOROVOD, "core"), r"through MPICH 5\.0\.2 does not support --bind"),
        ("openmpi5", ALLOCATED, HOROVOD, "cannot use a SLURM allocation"),
        ("openmpi5", FOUR, dataclasses.replace(HOROVOD_REMOTE, world_size=5), "1 too few"),
    ],
)
def test_horovodrun_refuses(flavor: str | None, machine: Machine, job: Job, words: str) -> None:
    with pytest.raises(UserError, match=words):
        horovodrun(flavor, machine).command(job)


def test_no_horovodrun_names_the_script_that_builds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(UserError, match="scripts/install-horovod"):
        plugins.create("cli.launch.launchers", "horovodrun")


def test_without_mpirun_horovodrun_goes_over_gloo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    (tmp_path / "horovodrun").touch(mode=0o755)
    assert plugins.create("cli.launch.launchers", "horovodrun").flavor is None
    with pytest.raises(UserError, match="no mpirun"):
        plugins.create("cli.launch.launchers", "horovodrun", controller="mpi")


def test_local_is_the_program_itself() -> None:
    job = dataclasses.replace(ALONE, environment={"A": "1"})
    assert local.Local({}).command(job) == Command(
        PROGRAM, {"OMPI_MCA_osc": "^ucx", "OMPI_MCA_btl": "^ofi,sm,vader", "A": "1"}
    )
    shell = {"OMPI_MCA_osc": "ucx", "OMPI_MCA_btl": "self"}
    assert local.Local(shell).command(job) == Command(PROGRAM, {"A": "1"})


@pytest.mark.parametrize(
    ("job", "words"),
    [
        (JOB, "--np is 2; use --launcher mpirun"),
        (dataclasses.replace(ALONE, hosts=(Host("n1", 1),)), "--hosts"),
        (bound(ALONE, "core"), "--bind"),
        (dataclasses.replace(ALONE, words=("-v",)), "--launcher-args"),
    ],
)
def test_local_refuses(job: Job, words: str) -> None:
    with pytest.raises(UserError, match=words):
        local.create().command(job)


@pytest.mark.parametrize(
    ("job", "variables", "expected"),
    [
        (JOB, {}, ""),
        (JOB, {"SLURM_CPUS_PER_TASK": "4"}, " --cpus-per-task 4"),
        (dataclasses.replace(JOB, oversubscribe=True), {}, " --overcommit"),
        (bound(JOB, "numa"), {}, " --cpu-bind=ldoms"),
        (VARIABLES, {}, ""),
        (dataclasses.replace(JOB, words=("--label", "a b")), {}, " --label 'a b'"),
    ],
)
def test_srun(job: Job, variables: dict[str, str], expected: str) -> None:
    command = srun.Srun("pmix_v4", ALLOCATED, environment=variables).command(job)
    assert line(command) == f"srun --ntasks 2 --mpi=pmix_v4 --export=ALL --kill-on-bad-exit=1{expected}"
    assert command.environment == job.environment


QUIET, YIELDS = {"OMPI_MCA_osc": "^ucx", "OMPI_MCA_btl": "^ofi"}, {"OMPI_MCA_mpi_yield_when_idle": "1"}


@pytest.mark.parametrize(
    ("machine", "job", "version", "expected"),
    [
        (ALLOCATED, VARIABLES, (5,), {**QUIET, "OMPI_MCA_btl_tcp_flags": "send,inplace", **YIELDS, "A": "1, 2"}),
        (ALLOCATED, JOB, (4, 1), YIELDS),
        (ONE_NODE, JOB, (5,), QUIET),
        (ONE_NODE, HOROVOD, (5,), QUIET),
        (NARROW, HOROVOD, (5,), {**QUIET, **YIELDS}),
        (ONE_NODE, dataclasses.replace(JOB, oversubscribe=True), (5,), {**QUIET, **YIELDS}),
        (
            ONE_NODE,
            dataclasses.replace(JOB, network=Network("ib0")),
            (5,),
            {**QUIET, **_interface.variables("ib0")},
        ),
    ],
)
def test_srun_hands_over_by_environment_what_mpirun_is_told(
    machine: Machine, job: Job, version: tuple[int, ...], expected: dict[str, str]
) -> None:
    assert srun.Srun("pmix_v4", machine, version, {}).command(job).environment == expected


@pytest.mark.parametrize("interface", ["ib0", "10.1.0.0/16"])
def test_mailboxes_obey_the_interface_that_srun_and_batch_scripts_tell(interface: str) -> None:
    told = _interface.variables(interface)
    assert addresses.chosen(told) == interface
    assert ("NCCL_SOCKET_IFNAME" in told) == (interface == "ib0")


def test_mailboxes_obey_horovod_over_gloo() -> None:
    assert addresses.chosen({"HOROVOD_GLOO_IFACE": "eth1"}) == "eth1"
    assert addresses.chosen({}) == ""


def test_a_variable_of_the_user_stays() -> None:
    own = {"OMPI_MCA_mpi_yield_when_idle": "0", "OMPI_MCA_osc": "rdma", "OMPI_MCA_btl": "self,tcp"}
    assert srun.Srun("pmix_v4", NARROW, (5,), own).command(HOROVOD).environment == {}


def test_srun_refuses_hosts_and_a_shell_outside_an_allocation(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="hosts of the allocation"):
        srun.Srun("pmix", ALLOCATED).command(REMOTE)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with pytest.raises(UserError, match="inside a SLURM allocation"):
        srun.create()


SLURM_22 = """MPI plugin types are...
\tpmix
\tnone
\tcray_shasta
\tpmi2
specific pmix plugin versions available: pmix_v4,pmix_v10
"""
SLURM_18 = "srun: MPI types are...\nsrun: none\nsrun: pmi2\nsrun: openmpi\n"


def test_plugins_that_srun_lists() -> None:
    assert srun.listed(SLURM_22) == ["pmix", "none", "cray_shasta", "pmi2", "pmix_v4", "pmix_v10"]
    assert srun.listed(SLURM_18) == ["none", "pmi2", "openmpi"]


@pytest.mark.parametrize(
    ("library", "plugin"),
    [("openmpi", "pmix_v10"), ("mpich", "pmi2"), ("intel", "pmi2"), ("cray", "cray_shasta")],
)
def test_plugin_for_a_library(library, plugin: str) -> None:
    assert srun.choose_plugin(srun.listed(SLURM_22), library) == plugin
    assert srun.choose_plugin(["pmix", "pmi2", "cray_shasta"], library) == plugin.removesuffix("_v10")


def test_no_plugin_for_a_library_says_the_way_out() -> None:
    with pytest.raises(UserError) as caught:
        srun.choose_plugin(srun.listed(SLURM_18), "openmpi")
    for word in ("Open MPI", "pmix", "none, pmi2, openmpi", "--launcher mpirun"):
        assert word in str(caught.value)


SAY = """
import json, os, sys
from mpi4py import MPI
window = MPI.Win.Allocate_shared(8, 8)
said = MPI.COMM_WORLD.gather([os.environ["A"], sys.argv[1], sorted(os.sched_getaffinity(0))])
if said:
    print(json.dumps(said))
"""


def run(command: Command) -> list[list[object]]:
    """Return what each rank of a pasted command line printed; nothing else may be printed."""
    done = subprocess.run(["bash", "-c", str(command)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    said: list[list[object]] = json.loads(done.stdout[done.stdout.index("[[") :])
    return said


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("launcher", ["mpirun", "horovodrun"])
def test_the_local_line_runs(launcher: str, ranks: int) -> None:
    needs("mpirun")
    needs("horovod" if launcher == "horovodrun" else "mpirun")
    words = ("x, 'y' \"z\"; $HOME `id` *", '{"a": [1, "two words"]}')
    program = (sys.executable, "-m", "mpi4py", "-c", SAY, words[1])
    job = Job(program, ranks, "horovod", environment={"A": words[0]})
    said = run(plugins.create("cli.launch.launchers", launcher).command(job))
    assert [rank[:2] for rank in said] == [list(words)] * ranks


def test_ranks_with_cores_of_their_own_do_not_overlap() -> None:
    needs("mpirun")
    cores = Machine.here().cores
    if cores < 2 or not Machine.here().whole:
        pytest.skip("needs a machine with two cores")
    program = (sys.executable, "-m", "mpi4py", "-c", SAY, "")
    said = run(plugins.create("cli.launch.launchers", "mpirun").command(Job(program, 2, "mpi", environment={"A": ""})))
    first, second = (set(rank[2]) for rank in said)  # type: ignore[call-overload]
    assert first.isdisjoint(second)

"""A real SLURM on one machine: a login host with the controller, and nodes."""

from __future__ import annotations

import secrets
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.cluster import hosts
from tests.cluster.hosts import PATH, Done, Hosts, wait_until

DAEMONS = ("munged", "sbatch", "slurmctld", "slurmd", "srun")
PMIX = next(Path("/usr/lib").glob("*/pmix2/lib"), None)
HEAD = "head"

CONFIGURATION = """\
ClusterName=test
SlurmctldHost={head}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
TmpFS={folder}/tmp/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/jobs.txt
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=bf_interval=2,sched_interval=2
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
PropagateResourceLimits=NONE
KillWait=20
SlurmdTimeout=12
MailProg=/bin/true
NodeName={nodes} CPUs={cpus} CoresPerSocket={cpus} RealMemory=4000 State=UNKNOWN
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str | None:
    """Return why this machine cannot have a SLURM, or None."""
    absent = [name for name in DAEMONS if not shutil.which(name, path=PATH)]
    absent += [] if PMIX else ["libpmix2"]
    if absent:
        return f"SLURM needs {', '.join(absent)}: scripts/install-test-machine installs what is missing"
    return hosts.missing()


class Slurm:
    """Nodes n1, n2, ... with `cpus` each, in one partition; `head` is the login host."""

    def __init__(self, nodes: int, cpus: int) -> None:
        self.hosts = Hosts(nodes, HEAD)
        self.nodes, self._cpus = self.hosts.names[:nodes], cpus

    def __enter__(self) -> Slurm:
        self.up()
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    def up(self) -> None:
        self.hosts.up()
        try:
            self._write()
            self._start()
        except BaseException:
            self.down()
            raise

    def down(self) -> None:
        """End every daemon and every job, and remove their files."""
        self.hosts.down()

    def run(self, argv: Sequence[str | Path], timeout: float = 60, **options: Any) -> Done:
        """Run `argv` on the login host; see `Hosts.run`."""
        return self.hosts.run(HEAD, argv, timeout, **self._options(options))

    def start(self, argv: Sequence[str | Path], **options: Any) -> subprocess.Popen[str]:
        """Start `argv` on the login host; see `Hosts.start`."""
        return self.hosts.start(HEAD, argv, **self._options(options))

    def lose(self, node: str) -> None:
        """Kill all processes on `node` as a power failure does: no connection is closed."""
        self.hosts.cut(node)
        for process in self.hosts.processes(node):
            process.kill()

    def restore(self, node: str) -> None:
        """Bring `node` back as after a boot: without the files of killed steps."""
        for folder in ("spool", "tmp"):
            shutil.rmtree(self._folder / folder / node)
            (self._folder / folder / node).mkdir()
        self.hosts.mend(node)
        self._daemon(node, "slurmd", "-N", node)

    def _options(self, options: dict[str, Any]) -> dict[str, Any]:
        return {**options, "env": {"SLURM_CONF": str(self._folder / "slurm.conf"), **options.get("env", {})}}

    def _write(self) -> None:
        self._folder = folder = self.hosts.folder
        folder.chmod(0o755)
        text = CONFIGURATION.format(head=HEAD, folder=folder, nodes=",".join(self.nodes), cpus=self._cpus)
        (folder / "slurm.conf").write_text(text)
        (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")  # unused, but slurmd requires it
        (folder / "munge.key").write_bytes(secrets.token_bytes(128))
        (folder / "munge.key").chmod(0o600)
        for path in ("state", *(f"spool/{node}" for node in self.nodes)):
            (folder / path).mkdir(parents=True)

    def _name_pmix(self) -> None:
        """Link libpmix.so, which SLURM's plugin opens and only a package for developers contains."""
        assert PMIX is not None
        copy = shutil.copytree(PMIX, self._folder / "pmix", symlinks=True)
        (copy / "libpmix.so").symlink_to("libpmix.so.2")
        for host in self.hosts.names:
            self._daemon(host, "mount", "--bind", str(copy), str(PMIX))

    def _start(self) -> None:
        self._name_pmix()
        files = {"key-file": "munge.key", "socket": "munge.socket", "pid-file": "munge.pid", "log-file": "munge.log"}
        files["seed-file"] = "munge.seed"
        self._daemon(HEAD, "munged", *(f"--{option}={self._folder / name}" for option, name in files.items()))
        self._daemon(HEAD, "slurmctld", "-c")
        for node in self.nodes:
            self._daemon(node, "slurmd", "-N", node)
        wait_until(lambda: self._idle() == set(self.nodes), "idle nodes")

    def _daemon(self, host: str, *argv: str) -> None:
        env = {"SLURM_CONF": str(self._folder / "slurm.conf"), "PATH": PATH}
        done = self.hosts.run(host, argv, env=env)
        if done.returncode:
            raise RuntimeError(f"{argv[0]} on {host}: {done.stderr}")

    def _idle(self) -> set[str]:
        return set(self.run(["sinfo", "--noheader", "--Node", "--states=idle", "--format=%N"]).stdout.split())

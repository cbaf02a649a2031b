"""Several hosts on one machine, each with its own network, hostname, processes, /dev/shm and sshd.

A host is a process in its own namespaces. So is the switch between the hosts, which has the bridge.
Nothing has a name or a mount outside of the namespaces, so two runs cannot clash. When these
processes end, even by SIGKILL, all other processes in the namespaces end too.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

NETWORK = "10.77.0"
TOOLS = ("bridge", "ip", "nsenter", "setpriv", "ssh", "ssh-keygen", "sshd", "tc", "unshare")
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
WITH_CALLER = ["setpriv", "--pdeathsig", "KILL"]
"""Runs the rest of argv and kills it when the process that started it ends."""

HOST = """
hostname {name}
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mkdir /run/sshd
mount --bind {folder}/hosts /etc/hosts
mount --bind {folder}/passwd /etc/passwd
mount --bind {folder}/ssh_config /etc/ssh/ssh_config
"""
NOBODY = "sshd:x:65533:65534::/run/sshd:/usr/sbin/nologin\nnobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n"
SWITCH = "ip link add switch mtu 9000 type bridge; ip link set switch up"
SSH = """\
Host *
  User root
  IdentityFile {folder}/key
  IdentitiesOnly yes
  StrictHostKeyChecking no
  UserKnownHostsFile /dev/null
  LogLevel ERROR
  ConnectTimeout 5
"""
SSHD = """\
ListenAddress {address}
HostKey {folder}/key
AuthorizedKeysFile {folder}/key.pub
PidFile none
StrictModes no
PermitRootLogin yes
PasswordAuthentication no
UsePAM no
UseDNS no
MaxStartups 200
SetEnv TMPDIR={folder}/tmp/{name}
"""


def missing() -> str | None:
    """Return why this machine cannot have hosts, or None."""
    absent = [tool for tool in TOOLS if not shutil.which(tool, path=PATH)]
    if absent:
        return f"hosts need {', '.join(absent)}: scripts/install-test-machine installs what is missing"
    tried = ["unshare", "--net", "--uts", "--mount", "--pid", "--fork", "--mount-proc", "sh", "-c", SWITCH]
    made = subprocess.run(tried, env={**os.environ, "PATH": PATH}, capture_output=True, text=True, check=False)
    return f"hosts need a root that may make namespaces and bridges: {made.stderr.strip()}" if made.returncode else None


@dataclass(frozen=True)
class Traffic:
    """Bytes through the interface of a host since it came up, headers included."""

    sent: int
    received: int

    @classmethod
    def of(cls, process: int | str = "self") -> Traffic:
        """Return the traffic of the host of `process`."""
        lines = Path(f"/proc/{process}/net/dev").read_text().splitlines()
        words = next(line for line in lines if line.strip().startswith("eth0:")).split()
        return cls(sent=int(words[9]), received=int(words[1]))

    def __sub__(self, before: Traffic) -> Traffic:
        return Traffic(self.sent - before.sent, self.received - before.received)


class Enclave:
    """An idle process in its own namespaces, after `script` ran there; its end kills all others."""

    def __init__(self, namespaces: Sequence[str], script: str, log: Path) -> None:
        self._namespaces = [f"--{kind}" for kind in namespaces]
        unshare = ["unshare", *self._namespaces, "--pid", "--fork", "--mount-proc", "--kill-child"]
        idle = f"{script}\nip link set lo up; trap '' CHLD; echo up; exec sleep infinity"
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                [*WITH_CALLER, *unshare, "sh", "-euc", idle],
                env={**os.environ, "PATH": PATH},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "up\n":
            self._process.wait()
            raise RuntimeError(f"no host: {log.read_text()}")
        self._init = psutil.Process(self._process.pid).children()[0]
        self.pid = self._init.pid

    def enter(self, argv: Sequence[str | Path]) -> list[str]:
        """Return the command that runs `argv` in these namespaces."""
        nsenter = ["nsenter", f"--target={self.pid}", *self._namespaces, "--pid", *WITH_CALLER]
        return [*nsenter, *map(str, argv)]

    def call(self, *argv: str | Path) -> str:
        """Run a short command, which must succeed, and return its output."""
        done = subprocess.run(
            self.enter(argv), env={**os.environ, "PATH": PATH}, capture_output=True, text=True, timeout=30, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(map(str, argv))}: {done.stderr}")
        return done.stdout

    def processes(self) -> list[psutil.Process]:
        """Return the processes that were started here and continue."""
        return [p for p in self._init.children(recursive=True) if name_of(p)]

    def close(self) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            self._init.kill()
        self._process.communicate()


class Hosts:
    """Hosts n1, n2, ... and `others` at 10.77.0.1, .2, ...; root can ssh between them by name.

    All hosts share one file system, but each has its own TMPDIR. The home of root is empty, and its
    shell reads no files of the user. Links have the speed of the machine until `shape` limits it.
    """

    def __init__(self, count: int, *others: str) -> None:
        self.names = [*(f"n{number}" for number in range(1, count + 1)), *others]
        self._hosts: dict[str, Enclave] = {}
        self._switch: Enclave | None = None

    def __enter__(self) -> Hosts:
        self.up()
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    def up(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ddl-hosts-"))
        try:
            self._write()
            self._switch = Enclave(["net"], SWITCH, self.folder / "switch.log")
            for name in self.names:
                self._host(name)
            wait_until(lambda: all(self._listens(name, 22) for name in self.names), "an sshd on each host")
        except BaseException:
            self.down()
            raise

    def down(self) -> None:
        """End every process on every host, and remove their files."""
        for enclave in [*self._hosts.values(), *([self._switch] if self._switch else [])]:
            enclave.close()
        self._hosts, self._switch = {}, None
        shutil.rmtree(self.folder)

    def hostfile(self, count: int, slots: int) -> Path:
        """Write a hostfile of the first `count` hosts, with `slots` each."""
        names = self.names[:count]
        path = self.folder / f"hostfile-{len(names)}x{slots}"
        path.write_text("".join(f"{name} slots={slots}\n" for name in names))
        return path

    def start(self, host: str, argv: Sequence[str | Path], **options: Any) -> subprocess.Popen[str]:
        """Start `argv` on `host` as `subprocess.Popen` does; the only child there is the command."""
        return subprocess.Popen(self._hosts[host].enter(argv), **self._options(host, options))

    def run(self, host: str, argv: Sequence[str | Path], timeout: float = 60, **options: Any) -> Done:
        """Run `argv` on `host` as `subprocess.run` does, and capture its output."""
        pipes = {"stdin": subprocess.DEVNULL, "capture_output": True, **self._options(host, options)}
        return subprocess.run(self._hosts[host].enter(argv), timeout=timeout, check=False, **pipes)

    def log_in_by(self, shell: str | Path) -> None:
        """Make `shell` the login shell of root on every host."""
        (self.folder / "passwd").write_text(f"root:x:0:0:root:{self.folder}/home:{shell}\n{NOBODY}")

    def listen_at(self, host: str, port: int) -> None:
        """Move the sshd of `host` to `port`."""
        before = [process for process in self._hosts[host].processes() if name_of(process) == "sshd"]
        for process in before:
            process.kill()
        psutil.wait_procs(before, timeout=10)
        self._start_sshd(host, "-p", str(port))
        wait_until(lambda: self._listens(host, port), f"an sshd at {port}")

    def processes(self, host: str) -> list[psutil.Process]:
        """Return the processes on `host` besides its sshd and those of `start` and `run`."""
        return [p for p in self._hosts[host].processes() if name_of(p) not in {"", "sshd"}]

    def traffic(self, host: str) -> Traffic:
        return Traffic.of(self._hosts[host].pid)

    def shape(self, rate: str | None) -> None:
        """Limit what every host sends to `rate` in the syntax of tc, such as 1gbit.

        None removes the limit.
        """
        limit = ["tbf", "rate", rate, "burst", "256kb", "limit", "16mb"] if rate else ["noqueue"]
        for host in self._hosts.values():
            host.call("tc", "qdisc", "replace", "dev", "eth0", "root", *limit)

    def cut(self, host: str) -> None:
        """Make the switch drop all packets from and to `host`; neither side is notified."""
        self._set_port(host, "disabled")

    def mend(self, host: str) -> None:
        self._set_port(host, "forwarding")

    def _set_port(self, host: str, state: str) -> None:
        assert self._switch is not None
        self._switch.call("bridge", "link", "set", "dev", host, "state", state)

    def _write(self) -> None:
        """Write the files that all hosts read."""
        lines = [f"{self._address(name)} {name}\n" for name in self.names]
        (self.folder / "hosts").write_text("127.0.0.1 localhost\n" + "".join(lines))
        (self.folder / "home").mkdir()
        self.log_in_by("/bin/sh")
        (self.folder / "ssh_config").write_text(SSH.format(folder=self.folder))
        key = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / "key")]
        subprocess.run(key, check=True)

    def _host(self, name: str) -> None:
        assert self._switch is not None
        (self.folder / "tmp" / name).mkdir(parents=True)
        what = {"name": name, "folder": self.folder, "address": self._address(name)}
        host = Enclave(["net", "uts", "ipc", "mount"], HOST.format(**what), self.folder / f"{name}.log")
        port = ["ip", "link", "add", name, "mtu", "9000", "netns", str(self._switch.pid), "type", "veth"]
        subprocess.run([*port, "peer", "eth0", "mtu", "9000", "netns", str(host.pid)], check=True)
        self._switch.call("ip", "link", "set", name, "up", "master", "switch")
        host.call("ip", "address", "add", f"{self._address(name)}/24", "dev", "eth0")
        host.call("ip", "link", "set", "eth0", "up")
        (self.folder / f"sshd-{name}").write_text(SSHD.format(**what))
        self._hosts[name] = host
        self._start_sshd(name)

    def _start_sshd(self, name: str, *options: str) -> None:
        files = ["-f", self.folder / f"sshd-{name}", "-E", self.folder / f"sshd-{name}.log"]
        self._hosts[name].call("/usr/sbin/sshd", *files, *options)

    def _address(self, name: str) -> str:
        return f"{NETWORK}.{self.names.index(name) + 1}"

    def _options(self, host: str, options: dict[str, Any]) -> dict[str, Any]:
        folders = {"HOME": str(self.folder / "home"), "TMPDIR": str(self.folder / "tmp" / host)}
        more = {**folders, **options.pop("env", {})}
        return {"text": True, "env": {**os.environ, **more}, **options}

    def _listens(self, host: str, port: int) -> bool:
        text = Path(f"/proc/{self._hosts[host].pid}/net/tcp").read_text()
        return any(line.split()[1].endswith(f":{port:04X}") for line in text.splitlines()[1:])


Done = subprocess.CompletedProcess[str]


def complaints(done: Done) -> list[str]:
    """Return the lines on stderr."""
    return [line for line in done.stderr.splitlines() if line.strip()]


def name_of(process: psutil.Process) -> str:
    """Return the name of a process, empty if it has ended."""
    try:
        return "" if process.status() == psutil.STATUS_ZOMBIE else process.name()
    except psutil.NoSuchProcess:
        return ""


def wait_until(true: Callable[[], bool], what: str, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not after {seconds} s")
        time.sleep(0.01)

"""How this command uses ssh: it never asks anything, and notices when the other side is gone."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

CONNECT_SECONDS = 10
OPTIONS = (
    *("-o", "BatchMode=yes"),
    *("-o", f"ConnectTimeout={CONNECT_SECONDS}"),
    *("-o", "ServerAliveInterval=5"),
    *("-o", "ServerAliveCountMax=2"),
)
AT_ONCE = 64
"""Hosts that are asked at the same time."""

_REMEDIES = (
    (r"Could not resolve", "correct the name in the hostfile, or add it to /etc/hosts"),
    (r"Host key verification failed", "log in once by hand and accept its key: ssh {host}"),
    (r"Permission denied", "let your key in: ssh-copy-id {host}"),
    (r"Connection refused", "start sshd on {host}"),
    (r"timed out|No route to host|unreachable", "see that {host} is up and that no firewall drops port 22"),
    (r"no answer", "see that ssh {host} true ends at once: the host may hang, or a login script of yours wait there"),
    (r"not found|No such file", "{host} needs the environment of this machine at the same path: {prefix}"),
)


@dataclass(frozen=True)
class Answer:
    """What a program on `host` printed, between two times of our clock; or why it did not run, and what mends that."""

    host: str
    text: str = ""
    problem: str = ""
    remedy: str = ""
    began: float = 0
    ended: float = 0

    @property
    def json(self) -> Any:
        """What the program printed last; what a login script prints may come before it."""
        return json.loads(self.text.rstrip().rpartition("\n")[2])


def ask(host: str, argv: Sequence[str], seconds: float) -> Answer:
    """Run `argv` on `host` for at most `seconds`."""
    began = time.time()
    command = ["ssh", *OPTIONS, host, shlex.join(argv)]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return _failed(host, f"no answer within {seconds:g} seconds")
    except OSError as error:
        return Answer(host, problem=f"ssh does not start: {error}", remedy="install an ssh client")
    if done.returncode:
        return _failed(host, done.stderr.rstrip().rpartition("\n")[2] or f"exit code {done.returncode}")
    return Answer(host, done.stdout, began=began, ended=time.time())


def ask_all(hosts: Sequence[str], argv: Sequence[str], seconds: float) -> list[Answer]:
    """The answers of all, a bounded number of hosts at a time."""
    with ThreadPoolExecutor(max(1, min(len(hosts), AT_ONCE))) as pool:
        return list(pool.map(lambda host: ask(host, argv, seconds), hosts))


def _failed(host: str, problem: str) -> Answer:
    remedy = next((text for pattern, text in _REMEDIES if re.search(pattern, problem)), "see what it says: ssh {host}")
    return Answer(host, problem=problem, remedy=remedy.format(host=host, prefix=sys.prefix))

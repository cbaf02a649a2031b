"""How this command uses ssh: it never asks anything, and notices when the other side is gone.

Login shells differ. A program's argv travels as one word that every shell reads alike, and an answer travels in a frame
(`hvd_train.events`), so that what a login script prints or returns does not matter.
"""

from __future__ import annotations

import base64
import contextlib
import json
import re
import shlex
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from hvd_train import events, strict_json

CONNECT_SECONDS = 10
OPTIONS = (
    *("-o", "BatchMode=yes"),
    *("-o", f"ConnectTimeout={CONNECT_SECONDS}"),
    *("-o", "ServerAliveInterval=5"),
    *("-o", "ServerAliveCountMax=2"),
)
AT_ONCE = 64
"""Hosts that are asked at the same time."""
LOT = 8
"""Connections that may be set up at the same time through one sshd, as that of a bastion (MaxStartups 10:30:100)."""
FAILED = 255
"""The exit code of ssh itself; any other is that of the remote shell."""

_UNPACK = (
    "import base64,json,os,sys,zlib;a,e=json.loads(zlib.decompress(base64.b64decode(sys.argv[1])));"
    "os.execve(a[0],a,{**os.environ,**e})"
)
_FRAME = re.compile(r"\x1e(\{[^\x1e\x1f]*\})\x1f")
_CROWDED = re.compile(r"kex_exchange_identification|^Connection (closed|reset) by|banner exchange")
"""What ssh says where sshd drops a connection before anybody logged in, as it does where too many come at once."""

_REMEDIES = (
    (r"Could not resolve", "correct the name in the hostfile, or add it to /etc/hosts"),
    (r"Host key verification failed", "log in once by hand and accept its key: ssh {host}"),
    (r"Permission denied", "let your key in: ssh-copy-id {host}"),
    (r"Connection refused", "start sshd on {host}"),
    (r"timed out|No route to host|unreachable", "see that {host} is up and that no firewall drops port 22"),
    (r"no answer", "see that ssh {host} true ends at once: the host may hang, or a login script of yours wait there"),
    (r"can't open file|No module named", "install this ddl on {host}: {python} -m pip install ddl"),
    (r"not found|No such file", "{host} needs the environment of this machine at the same path: {prefix}"),
)


@dataclass(frozen=True)
class Answer:
    """What a program on `host` answered, between two times of our clock; or why there is no answer, and what mends that."""

    host: str
    json: Any = None
    problem: str = ""
    remedy: str = ""
    began: float = 0
    ended: float = 0


@dataclass(frozen=True)
class Client:
    """ssh with the words `args`, which win over ours; programs on the other side get the variables `environment`."""

    args: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)

    def command(self, host: str, argv: Sequence[str]) -> list[str]:
        """The command that runs `argv` on `host`, whatever the login shell there."""
        return ["ssh", *self.args, *OPTIONS, host, packed(argv, self.environment)]

    def ask(self, host: str, argv: Sequence[str], seconds: float) -> Answer:
        """Run `argv` on `host` for at most `seconds`; its answer is what it prints in a frame."""
        began = time.time()
        done = _call(self.command(host, argv), host, seconds)
        if isinstance(done, Answer):
            return done
        found = unframed(done.stdout)
        if found is not None:
            return Answer(host, found, began=began, ended=time.time())
        return _failed(host, _reason(done.stderr) or f"no answer, and exit code {done.returncode}")

    def ask_all(self, hosts: Sequence[str], argv: Sequence[str], seconds: float) -> list[Answer]:
        """The answers of all, a bounded number of hosts at a time."""
        return in_lots(hosts, lambda host: self.ask(host, argv, seconds))

    def reachable(self, hosts: Sequence[str], seconds: float) -> set[str]:
        """Those of `hosts` on which a command ends within `seconds`, whatever the login shell there says or returns."""
        answers = in_lots(hosts, lambda host: self._ping(host, seconds))
        return {answer.host for answer in answers if not answer.problem}

    def _ping(self, host: str, seconds: float) -> Answer:
        done = _call(["ssh", *self.args, *OPTIONS, host, "true"], host, seconds)
        if isinstance(done, Answer):
            return done
        return _failed(host, _reason(done.stderr) or "exit code 255") if done.returncode == FAILED else Answer(host)


PLAIN = Client()
"""ssh as this user has configured it."""


def in_lots(hosts: Sequence[str], call: Callable[[str], Answer]) -> list[Answer]:
    """`call` for each host, a bounded number at a time; those that a busy sshd has dropped once more, in small lots."""
    first = _at_once(hosts, call, AT_ONCE)
    dropped = [answer.host for answer in first if crowded(answer.problem)]
    again = {answer.host: answer for answer in _at_once(dropped, call, LOT)}
    return [again.get(answer.host, answer) for answer in first]


def crowded(text: str) -> bool:
    """Whether ssh says in `text` that sshd dropped it before it could log in: it may do so again, with fewer beside it."""
    return bool(_CROWDED.search(text))


def packed(argv: Sequence[str], environment: Mapping[str, str]) -> str:
    """A command that means `argv` to every shell: csh takes no newline in a word, fish reads backslashes otherwise."""
    word = base64.b64encode(zlib.compress(strict_json.dumps([list(argv), dict(environment)]).encode(), 9)).decode()
    return shlex.join([sys.executable, "-ISc", _UNPACK, word])


def framed(answer: Mapping[str, Any]) -> str:
    """What a program prints on stdout as its answer."""
    return f"{events.START.decode()}{strict_json.dumps(answer)}{events.END.decode()}"


def unframed(text: str) -> Any:
    """The last answer in what a program and its login shell printed; None where there is none."""
    for found in reversed(_FRAME.findall(text)):
        with contextlib.suppress(ValueError):
            return json.loads(found)
    return None


def _at_once(hosts: Sequence[str], call: Callable[[str], Answer], most: int) -> Iterable[Answer]:
    with ThreadPoolExecutor(max(1, min(len(hosts), most))) as pool:
        return list(pool.map(call, hosts))


def _call(command: list[str], host: str, seconds: float) -> subprocess.CompletedProcess[str] | Answer:
    """What came of `command`, or the answer that says why it did not end."""
    try:
        return subprocess.run(
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


def _reason(errors: str) -> str:
    """The last line that there is a remedy for, as login shells may speak after it; else the last line."""
    lines = [line for line in errors.splitlines() if line.strip()]
    known = [line for line in lines if crowded(line) or _remedy(line)]
    return ([""] + (known or lines))[-1]


def _remedy(problem: str) -> str | None:
    return next((text for pattern, text in _REMEDIES if re.search(pattern, problem)), None)


def _failed(host: str, problem: str) -> Answer:
    remedy = _remedy(problem) or "see what it says: ssh {host}"
    told = {"host": host, "prefix": sys.prefix, "python": sys.executable}
    return Answer(host, problem=problem, remedy=remedy.format(**told))

"""Run programs on other hosts over ssh, without prompts, and detect lost connections.

Login shells differ. The argv of a program is encoded as one word that every shell reads alike. An
answer is printed in a frame (`hvd_train.rank.events`), so the output and exit code of login scripts
do not matter.
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

from hvd_train.rank import events
from hvd_train.text import strict_json

CONNECT_SECONDS = 10
OPTIONS = (
    *("-o", "BatchMode=yes"),
    *("-o", f"ConnectTimeout={CONNECT_SECONDS}"),
    *("-o", "ServerAliveInterval=5"),
    *("-o", "ServerAliveCountMax=2"),
)
AT_ONCE = 64
"""Most hosts that are contacted at the same time."""
LOT = 8
"""Most connections that are opened at a time through one sshd (MaxStartups 10:30:100)."""
FAILED = 255
"""The exit code of ssh itself. Any other exit code is that of the remote shell."""

_UNPACK = (
    "import base64,json,os,sys,zlib;a,e=json.loads(zlib.decompress(base64.b64decode(sys.argv[1])));"
    "os.execve(a[0],a,{**os.environ,**e})"
)
_FRAME = re.compile(r"\x1e(\{[^\x1e\x1f]*\})\x1f")
_CROWDED = re.compile(r"kex_exchange_identification|^Connection (closed|reset) by|banner exchange")
"""Messages of ssh when sshd closes a connection before login because too many are opened."""

_REMEDIES = (
    (r"Could not resolve", "correct the name in the hostfile, or add it to /etc/hosts"),
    (r"Host key verification failed", "log in once by hand and accept its key: ssh {host}"),
    (r"Permission denied", "let your key in: ssh-copy-id {host}"),
    (r"Connection refused", "start sshd on {host}"),
    (r"timed out|No route to host|unreachable", "check that {host} is up and that no firewall drops port 22"),
    (r"no answer", "check that ssh {host} true ends at once: the host may hang, or your login script may wait there"),
    (
        r"can't open file|No module named",
        "install ddl on {host}: in a checkout of ddl there, run {python} -m pip install -e .",
    ),
    (r"not found|No such file", "install the environment of this machine on {host} at the same path: {prefix}"),
)


@dataclass(frozen=True)
class Answer:
    """The answer of a program on `host`, or the `problem` that prevented one, with its `remedy`.

    `json` is the answer. The program ran between `began` and `ended`, in seconds of this machine's
    clock.
    """

    host: str
    json: Any = None
    problem: str = ""
    remedy: str = ""
    began: float = 0
    ended: float = 0


@dataclass(frozen=True)
class Client:
    """An ssh client.

    `args` take precedence over `OPTIONS`; remote programs receive the variables `environment`.
    """

    args: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)

    def command(self, host: str, argv: Sequence[str]) -> list[str]:
        """Return the command that runs `argv` on `host`, for any login shell."""
        return ["ssh", *self.args, *OPTIONS, host, packed(argv, self.environment)]

    def ask(self, host: str, argv: Sequence[str], seconds: float) -> Answer:
        """Run `argv` on `host` for at most `seconds`, and return what it prints in a frame."""
        began = time.time()
        done = _call(self.command(host, argv), host, seconds)
        if isinstance(done, Answer):
            return done
        found = unframed(done.stdout)
        if found is not None:
            return Answer(host, found, began=began, ended=time.time())
        return _failed(host, _reason(done.stderr) or f"no answer, and exit code {done.returncode}")

    def ask_all(self, hosts: Sequence[str], argv: Sequence[str], seconds: float) -> list[Answer]:
        """Return the answer of each host. At most `AT_ONCE` hosts are contacted at a time."""
        return in_lots(hosts, lambda host: self.ask(host, argv, seconds))

    def reachable(self, hosts: Sequence[str], seconds: float) -> set[str]:
        """Return the hosts on which a command ends within `seconds`, with any exit code."""
        answers = in_lots(hosts, lambda host: self._ping(host, seconds))
        return {answer.host for answer in answers if not answer.problem}

    def _ping(self, host: str, seconds: float) -> Answer:
        done = _call(["ssh", *self.args, *OPTIONS, host, "true"], host, seconds)
        if isinstance(done, Answer):
            return done
        return _failed(host, _reason(done.stderr) or "exit code 255") if done.returncode == FAILED else Answer(host)


PLAIN = Client()
"""The ssh client as the user has configured it."""


def in_lots(hosts: Sequence[str], call: Callable[[str], Answer]) -> list[Answer]:
    """Call `call` for each host, at most `AT_ONCE` at a time.

    Hosts whose sshd was busy are called again, `LOT` at a time.
    """
    first = _at_once(hosts, call, AT_ONCE)
    dropped = [answer.host for answer in first if crowded(answer.problem)]
    again = {answer.host: answer for answer in _at_once(dropped, call, LOT)}
    return [again.get(answer.host, answer) for answer in first]


def crowded(text: str) -> bool:
    """Return True if `text` reports that sshd closed the connection before login.

    Fewer connections at a time may succeed.
    """
    return bool(_CROWDED.search(text))


def packed(argv: Sequence[str], environment: Mapping[str, str]) -> str:
    """Return a command line that runs `argv` in every shell.

    csh allows no newline in a word, and fish reads backslashes differently.
    """
    word = base64.b64encode(zlib.compress(strict_json.dumps([list(argv), dict(environment)]).encode(), 9)).decode()
    return shlex.join([sys.executable, "-ISc", _UNPACK, word])


def framed(answer: Mapping[str, Any]) -> str:
    """Return `answer` in the frame in which a program prints it on stdout."""
    return f"{events.START.decode()}{strict_json.dumps(answer)}{events.END.decode()}"


def unframed(text: str) -> Any:
    """Return the last answer in the output of a program and its login shell, or None."""
    for found in reversed(_FRAME.findall(text)):
        with contextlib.suppress(ValueError):
            return json.loads(found)
    return None


def _at_once(hosts: Sequence[str], call: Callable[[str], Answer], most: int) -> Iterable[Answer]:
    with ThreadPoolExecutor(max(1, min(len(hosts), most))) as pool:
        return list(pool.map(call, hosts))


def _call(command: list[str], host: str, seconds: float) -> subprocess.CompletedProcess[str] | Answer:
    """Return the completed `command`, or an answer with the reason why it did not complete."""
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
        return Answer(host, problem=f"cannot start ssh: {error}", remedy="install an ssh client")


def _reason(errors: str) -> str:
    """Return the last line with a known remedy, else the last line.

    Login shells may print lines after the message of ssh.
    """
    lines = [line for line in errors.splitlines() if line.strip()]
    known = [line for line in lines if crowded(line) or _remedy(line)]
    return ([""] + (known or lines))[-1]


def _remedy(problem: str) -> str | None:
    return next((text for pattern, text in _REMEDIES if re.search(pattern, problem)), None)


def _failed(host: str, problem: str) -> Answer:
    remedy = _remedy(problem) or "check the output of: ssh {host}"
    names = {"host": host, "prefix": sys.prefix, "python": sys.executable}
    return Answer(host, problem=problem, remedy=remedy.format(**names))

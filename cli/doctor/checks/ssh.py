"""The ssh client, and a key that logs in to other hosts without a prompt."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from cli.doctor.base import Check, Finding
from cli.launch import flavor

_ONLY = "only other hosts need it"


def create() -> Check:
    return Check(_examine, on_hosts=False)


def _examine() -> Finding:
    if "SLURM_JOB_ID" in os.environ:
        return Finding("ok", "not needed in a SLURM allocation", facts={"ssh": shutil.which("ssh"), "keys": []})
    if not shutil.which("ssh"):
        install = "install it (Debian, Ubuntu: apt-get install openssh-client)"
        return Finding("warning", f"no ssh; {_ONLY}", install, {"ssh": None, "keys": []})
    version = flavor.ask("ssh", "-V").stdout.partition(",")[0]
    agent, keys = _agent(), _keys()
    usable = [key for key in keys if agent or _opens(key)]
    facts = {"ssh": version, "agent": agent, "keys": [str(key) for key in usable]}
    if agent:
        return Finding("ok", f"{version}, with an agent that holds a key", facts=facts)
    if usable:
        return Finding("ok", f"{version}, with {usable[0]}", facts=facts)
    if keys:
        remedy = 'eval "$(ssh-agent)" && ssh-add'
        return Finding(
            "warning", f"{version}; {keys[0]} needs a passphrase, and no agent holds it; {_ONLY}", remedy, facts
        )
    remedy = "ssh-keygen -t ed25519, then for each host: ssh-copy-id HOST"
    return Finding("warning", f"{version}, without a key or an agent; {_ONLY}", remedy, facts)


def _agent() -> bool:
    return "SSH_AUTH_SOCK" in os.environ and _succeeds("ssh-add", "-l")


def _keys() -> list[Path]:
    """Return the private keys that ssh offers."""
    configuration = flavor.ask("ssh", "-G", "localhost").stdout
    names = re.findall(r"^identityfile (.+)$", configuration, re.MULTILINE)
    return [path for path in (Path(name).expanduser() for name in names) if path.is_file()]


def _opens(key: Path) -> bool:
    return _succeeds("ssh-keygen", "-y", "-P", "", "-f", str(key))


def _succeeds(*argv: str) -> bool:
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=10, check=False)
    return done.returncode == 0

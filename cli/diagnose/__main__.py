"""The checks of this machine for another one: program `cli.diagnose '{"NAME": {OPTIONS}, ...}'` prints findings in a frame."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

from cli import ssh
from cli.diagnose._places import Here


def main() -> None:
    found = Here().examine(json.loads(sys.argv[1]))
    print(ssh.framed({name: asdict(finding) for name, finding in found.items()}))


if __name__ == "__main__":
    main()

"""The checks of this machine, for `ddl doctor` on another one.

`python -m cli.doctor '{"NAME": {OPTIONS}, ...}'` prints the findings of these checks as a framed
JSON object.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

from cli.doctor.examine import examine
from cli.remote import ssh


def main() -> None:
    found = examine(json.loads(sys.argv[1]))
    print(ssh.framed({name: asdict(finding) for name, finding in found.items()}))


if __name__ == "__main__":
    main()

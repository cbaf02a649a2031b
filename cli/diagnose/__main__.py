"""The checks of this machine for another one: `cli.diagnose '{"NAME": {OPTIONS}, ...}'` prints findings as JSON."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

from cli.diagnose._places import Here


def main() -> None:
    found = Here().examine(json.loads(sys.argv[1]))
    print(json.dumps({name: asdict(finding) for name, finding in found.items()}))


if __name__ == "__main__":
    main()

"""`ddl schema`: print the JSON Schema of the YAML file."""

from __future__ import annotations

from hvd_train.text import strict_json


def command() -> None:
    """Print the JSON Schema of the YAML file, for completion and checks in editors."""
    from cli.arguments.configuration import RunFile
    from hvd_train.config.json_schema import json_schema

    print(strict_json.dumps(json_schema(RunFile), indent=2))

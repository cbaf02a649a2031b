"""`ddl schema`: the JSON Schema of the YAML file."""

from __future__ import annotations

from hvd_train import strict_json


def command() -> None:
    """Print the JSON Schema of the YAML file, so that editors complete and check it."""
    from hvd_train.config import json_schema

    print(strict_json.dumps(json_schema(), indent=2))

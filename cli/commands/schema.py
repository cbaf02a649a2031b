"""`ddl schema`: the JSON Schema of the YAML file."""

from __future__ import annotations


def command() -> None:
    """Print the JSON Schema of the YAML file, so that editors complete and check it."""
    import json

    from hvd_train.config import json_schema

    print(json.dumps(json_schema(), indent=2))

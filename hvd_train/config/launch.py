"""What the command sends to the ranks: the configuration and the launch, as one JSON document."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from hvd_train.config.document import Document
from hvd_train.config.resolve import read_section, resolve
from hvd_train.config.schema import Config
from hvd_train.config.section import PluginSection, Section
from hvd_train.text import strict_json

GATE = "DDL_GATE"
"""Variable with the file in which a search answers the evaluations of a run (`hvd_train/rank/gate.py`)."""
RESULT = "result.json"
"""The file in the output folder of a task that holds what the task returned on rank 0."""


class EmulationSection(Section):
    """A network and a rank that are slower than the real ones."""

    latency_ms: NonNegativeFloat = 0.0
    """Milliseconds of a message."""
    gbps: PositiveFloat | None = None
    """Gigabits per second of a rank; None: the real bandwidth."""
    straggler: NonNegativeInt | None = None
    """The rank whose computation is slower."""
    factor: Annotated[float, Field(ge=1)] = 1.0
    """How many times slower the straggler computes."""


class TaskSection(PluginSection):
    """What ranks do with a trained model in place of training."""

    package: ClassVar[str] = "hvd_train.trained.tasks"
    takes_target: ClassVar[bool] = False
    product: ClassVar[str] = "a Task"
    name: str


class Launch(Section):
    """What the ranks need to know beside the configuration."""

    world_size: PositiveInt
    engine: str
    output: str
    """The run folder, or the folder of the results of a task."""
    resume: str | None = None
    """The run folder or the checkpoint to resume from, or the checkpoint that a task uses."""
    task: TaskSection | None = None
    """What the ranks do in place of training."""
    tee: list[int] = Field([0])
    """The ranks whose output is shown."""
    columns: int | None = None
    """Width of the terminal that shows the output of rank 0; None: plain lines."""
    check_collectives: bool = False
    emulate: EmulationSection | None = None


def parse_document(text: str) -> tuple[Config, Launch]:
    """Return the configuration and the launch in `text`, which `to_document` made."""
    values = strict_json.loads_exact(text)
    return resolve(Document(values["config"], "configuration")), read_section(
        Launch, Document(values["launch"], "launch")
    )


def to_document(config: Config, launch: Launch) -> str:
    """Return JSON from which `parse_document` makes `config` and `launch`.

    Sections that a subtype adds to `Config` are for the command only and stay out. Defaults stay
    out too, so that a person can read the text.
    """
    parts = {"config": _written_fields(config), "launch": launch.model_dump(exclude_defaults=True)}
    return strict_json.dumps_exact(parts, separators=(",", ":"))


def _written_fields(config: Config) -> dict[str, Any]:
    dump = config.model_dump(exclude_unset=True, include=set(Config.model_fields))
    return {k: v for k, v in dump.items() if v != {}}

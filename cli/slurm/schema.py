"""The section `slurm:` of the YAML file: what `ddl submit` requests from SLURM.

Ranks never receive it.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveInt

from cli.slurm import duration
from hvd_train.config.section import Section

Line = Annotated[str, Field(pattern=r"^[^\r\n]+$")]
Variable = Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$")]
Word = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*$")]
Duration = Annotated[
    Annotated[str, Field(pattern=rf"^({duration.SLURM}|(\d+(\.\d+)? *[a-z]+ *)+)$")] | PositiveInt,
    BeforeValidator(duration.for_slurm),
]


class SlurmProfile(Section):
    """Options of sbatch, and what the job does before it starts ranks."""

    nodes: PositiveInt | None = Field(None, description="nodes of the job")
    ntasks_per_node: PositiveInt | None = Field(None, description="ranks on each node")
    cpus_per_task: PositiveInt | None = Field(None, description="CPUs, and OpenMP threads, of each rank")
    gpus_per_node: PositiveInt | Line | None = Field(None, description="GPUs of each node, such as 4 or a100:4")
    mem: PositiveInt | Line | None = Field(None, description="memory of each node: MB, or with a unit such as 64G")
    time: Duration | None = Field(None, description="time limit: minutes, H:M:S, D-H, or 1h30m")
    partition: Line | None = Field(None, description="partition to run in")
    account: Line | None = Field(None, description="account to charge")
    qos: Line | None = Field(None, description="quality of service")
    container_image: Line | None = Field(None, description="image for the container plugin of the site, such as pyxis")
    sbatch: dict[Word, Line | int | None] = Field(
        {}, description="other options of sbatch; null for an option without a value"
    )
    modules: list[Line] = Field([], description="environment modules to load, in order")
    environment: dict[Variable, Line | int] = Field({}, description="environment variables of the job")
    interface: Line | None = Field(None, description="network interface between ranks, such as ib0")
    notice: PositiveInt = Field(120, description="seconds before the time limit at which ranks save and stop")
    max_requeues: NonNegativeInt = Field(10, description="how many times the job requeues itself")


class SlurmSection(SlurmProfile):
    """The section as it stands in a YAML file."""

    profile: Line | None = Field(
        None, description="profile that supplies the fields not written here: NAME of profiles/NAME.yaml"
    )

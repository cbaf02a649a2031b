"""The configuration of a run: what may stand in the YAML file, and what each field changes.

Sections that choose a plugin (`model`, `data`, ...) hold the fields of that plugin beside the common ones, so the type of
a configuration depends on the names in it: `specialise` makes that type. A plugin section may be written as just the
name: `model: mlp` is `model: {name: mlp}`.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    create_model,
    model_validator,
)

from hvd_train import duration, optimizers, plugins, strict_json
from hvd_train.document import Document, Path_
from hvd_train.errors import UserError, nearest
from hvd_train.names import match
from hvd_train.options import Fraction

S = TypeVar("S", bound="Section")


class Section(BaseModel):
    """A part of the configuration: unknown keys and wrong types are mistakes."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class PluginSection(Section):
    """A section that names a member of a family and carries its options."""

    package: ClassVar[str]
    selector: ClassVar[str] = "name"
    default: ClassVar[str | None] = None

    @classmethod
    def members(cls) -> list[str]:
        return plugins.names(cls.package)

    @classmethod
    def member_fields(cls, name: str) -> dict[str, Any]:
        fields = plugins.options(cls.package, name).model_fields
        return {word: (info.annotation, info) for word, info in fields.items()}

    @property
    def member(self) -> str:
        return str(getattr(self, self.selector))

    @property
    def options(self) -> dict[str, Any]:
        """What the chosen member's `create` takes."""
        return {word: getattr(self, word) for word in self.member_fields(self.member)}


class ModelSection(PluginSection):
    package: ClassVar[str] = "hvd_train.models"
    name: str = Field(description="model to train (ddl list models), or leave out and give 'target'")


class PartitionSection(PluginSection):
    package: ClassVar[str] = "hvd_train.partition"
    default: ClassVar[str | None] = "random"
    name: str = Field("random", description="how samples are dealt to ranks (ddl list partitions)")


class DataSection(PluginSection):
    package: ClassVar[str] = "hvd_train.data"
    name: str = Field(description="source of the samples (ddl list data), or leave out and give 'target'")
    batch_size: PositiveInt = Field(
        32,
        description="samples per copy of the model and micro-batch; without parallel, the global batch is np times that",
    )
    partition: PartitionSection = Field(default_factory=PartitionSection)


class OptimizerSection(PluginSection):
    default: ClassVar[str | None] = "SGD"
    name: str = Field("SGD", description="class of torch.optim (ddl list optimizers)")

    @classmethod
    def members(cls) -> list[str]:
        return sorted(optimizers.modules())

    @classmethod
    def member_fields(cls, name: str) -> dict[str, Any]:
        return optimizers.options(name)

    @property
    def options(self) -> dict[str, Any]:
        """Only what was written down: the rest is for torch to decide."""
        return {k: v for k, v in super().options.items() if k in self.model_fields_set}


class ScheduleSection(Section):
    name: Literal["constant", "cosine", "linear", "step"] = Field("constant", description="course of the learning rate")
    warmup_steps: NonNegativeInt = Field(0, description="steps over which the rate rises linearly from zero")
    final: Fraction = Field(0.0, description="cosine and linear: share of the rate left at the last step")
    every: PositiveInt = Field(1000, description="step: steps between two reductions")
    factor: Annotated[float, Field(gt=0, le=1)] = Field(0.1, description="step: what each reduction multiplies by")
    scale_by_world_size: bool = Field(
        False, description="multiply the rate by the number of ranks (linear scaling rule)"
    )


class EarlyStopSection(Section):
    metric: str = Field("loss", description="evaluation metric that must improve (loss falls, others rise)")
    patience: PositiveInt = Field(3, description="evaluations without improvement before training ends")
    min_delta: NonNegativeFloat = Field(0.0, description="smallest change that counts as improvement")


class ConvergeSection(Section):
    metric: str = Field("accuracy", description="evaluation metric that decides (loss falls, others rise)")
    value: float = Field(description="training ends when the metric has reached this")


class TrainSection(Section):
    epochs: PositiveInt | None = Field(None, description="passes over the data; this or 'steps' (10 epochs if neither)")
    steps: PositiveInt | None = Field(None, description="optimizer steps; this or 'epochs'")
    max_seconds: PositiveFloat | None = Field(
        None, description="training ends at the first evaluation after so many seconds of it"
    )
    max_bytes: PositiveInt | None = Field(
        None, description="training ends at the first evaluation after all ranks together sent so many bytes"
    )
    accumulate: PositiveInt = Field(1, description="micro-batches whose gradients add up to one step")
    clip_norm: PositiveFloat | None = Field(None, description="largest global norm of the gradient")
    precision: Literal["fp32", "fp64", "bf16", "fp16"] = Field(
        "fp32", description="fp16 and bf16 compute under autocast"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: a GPU where there is one for every rank")
    loss: Literal["auto", "cross_entropy", "mse"] = Field("auto", description="auto: by the data's task")
    class_weights: Literal["balanced"] | list[PositiveFloat] | None = Field(
        None, description="weight of each class in the loss; 'balanced' weighs by inverse frequency"
    )
    eval_every: PositiveInt | Literal["epoch"] = Field(
        "epoch", description="steps between evaluations; the end has one too"
    )
    log_every: PositiveInt = Field(10, description="steps between two lines of training metrics")
    early_stop: EarlyStopSection | None = None
    converge: ConvergeSection | None = None

    @model_validator(mode="after")
    def _one_length(self) -> TrainSection:
        if self.epochs is not None and self.steps is not None:
            raise ValueError("give 'epochs' or 'steps', not both")
        return self


class CompressionSection(PluginSection):
    package: ClassVar[str] = "hvd_train.compress"
    default: ClassVar[str | None] = "none"
    name: str = Field("none", description="what travels instead of full gradients (ddl list compressors)")


class SyncSection(PluginSection):
    package: ClassVar[str] = "hvd_train.sync"
    selector: ClassVar[str] = "strategy"
    default: ClassVar[str | None] = "allreduce"
    strategy: str = Field("allreduce", description="what ranks agree on, and when (ddl list strategies)")
    compression: CompressionSection = Field(default_factory=CompressionSection)
    fusion_mb: Literal["auto"] | NonNegativeFloat = Field(
        "auto",
        description="MiB of gradients reduced at once; 0: every tensor on its own; auto: measured at the first start, and fixed "
        "where compression works on the whole bucket, so that two runs are equal",
    )


class ParallelSection(Section):
    pipeline: PositiveInt = Field(
        1,
        description="stages that the model is cut into, each on ranks of its own, through which train.accumulate micro-batches "
        "follow one another; pipeline x tensor ranks hold one copy of the model, and divide np",
    )
    tensor: PositiveInt = Field(
        1,
        description="ranks that share linear layers and attention heads, of which every layer waits for sums over them: "
        "keep them on one host",
    )
    schedule: Literal["1f1b", "gpipe"] = Field(
        "1f1b",
        description="order of the micro-batches; 1f1b keeps activations of at most 'pipeline' of them, gpipe of all",
    )


class CheckpointSection(Section):
    every: PositiveInt | Literal["epoch"] = Field("epoch", description="steps between checkpoints; the end has one too")
    keep: PositiveInt = Field(3, description="newest checkpoints kept")


Line = Annotated[str, Field(pattern=r"^[^\r\n]+$")]
Variable = Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$")]
Word = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*$")]
Duration = Annotated[
    Annotated[str, Field(pattern=rf"^({duration.SLURM}|(\d+(\.\d+)? *[a-z]+ *)+)$")] | PositiveInt,
    BeforeValidator(duration.for_slurm),
]


class SlurmProfile(Section):
    """What `ddl submit` asks of SLURM, in the words of sbatch, and what the job does before it starts ranks."""

    nodes: PositiveInt | None = Field(None, description="nodes of the job")
    ntasks_per_node: PositiveInt | None = Field(None, description="ranks on each node")
    cpus_per_task: PositiveInt | None = Field(None, description="processors, and OpenMP threads, of each rank")
    gpus_per_node: PositiveInt | Line | None = Field(None, description="GPUs of each node, as 4 or a100:4")
    mem: PositiveInt | Line | None = Field(None, description="memory of each node: MB, or as 64G")
    time: Duration | None = Field(None, description="time limit: minutes, H:M:S, D-H, or 1h30m")
    partition: Line | None = Field(None, description="partition to run in")
    account: Line | None = Field(None, description="account to charge")
    qos: Line | None = Field(None, description="quality of service")
    container_image: Line | None = Field(None, description="image for the site's container plugin, such as pyxis")
    sbatch: dict[Word, Line | int | None] = Field({}, description="other options of sbatch; null for one without value")
    modules: list[Line] = Field([], description="environment modules to load, in order")
    environment: dict[Variable, Line | int] = Field({}, description="variables of the job")
    interface: Line | None = Field(None, description="network interface that ranks talk over, such as ib0")
    notice: PositiveInt = Field(120, description="seconds before the time limit at which ranks save and stop")
    max_requeues: NonNegativeInt = Field(10, description="how often the job puts itself in the queue again")


class SlurmSection(SlurmProfile):
    profile: Line | None = Field(None, description="profile with what is not written here: NAME of profiles/NAME.yaml")


class Config(Section):
    """One run."""

    seed: NonNegativeInt = Field(0, description="seed of initialisation, partition and noise")
    model: ModelSection
    data: DataSection
    optimizer: OptimizerSection = Field(default_factory=OptimizerSection)
    schedule: ScheduleSection = Field(default_factory=ScheduleSection)
    train: TrainSection = Field(default_factory=TrainSection)
    parallel: ParallelSection = Field(default_factory=ParallelSection)
    sync: SyncSection = Field(default_factory=SyncSection)
    checkpoint: CheckpointSection = Field(default_factory=CheckpointSection)
    slurm: SlurmSection = Field(default_factory=SlurmSection)


class EmulationSection(Section):
    """A network and a rank that are slower than those there are."""

    latency_ms: NonNegativeFloat = 0.0
    gbps: PositiveFloat | None = None
    straggler: NonNegativeInt | None = None
    factor: Annotated[float, Field(ge=1)] = 1.0
    """How many times slower the rank `straggler` computes."""


class Launch(Section):
    """What the command tells the ranks beside the configuration."""

    world_size: PositiveInt
    engine: str
    output: str
    resume: str | None = None
    tee: list[int] = [0]
    columns: int | None = None
    """Width of the terminal that rank 0's output ends up in; None: plain lines."""
    check_collectives: bool = False
    emulate: EmulationSection | None = None


Mistakes = list[tuple[Path_, str]]


def resolve(document: Document, overrides: Sequence[str] = ()) -> Config:
    """The configuration that `document` and `overrides` describe; UserError has one line for each mistake."""
    document.values = expand(Config, document.values)
    for assignment in overrides:
        document.override(assignment)
    return read_section(Config, document)


def read_section(kind: type[S], document: Document) -> S:
    """The section that the whole of `document` is; UserError has one line for each mistake."""
    values = expand(kind, document.values)
    mistakes: Mistakes = []
    kind = specialise(kind, values, (), mistakes)
    try:
        section = kind.model_validate(values)
    except ValidationError as error:
        mistakes += _explained(error, kind, values)
    if mistakes:
        lines = (f"{document.place(path)}: {'.'.join(map(str, path))}: {text}" for path, text in mistakes)
        raise UserError("\n".join(lines))
    return section


def expand(kind: type[Section], values: Any) -> Any:
    """`values` with plugin sections that are just a name written out, and names of members in the case that members have.

    `target` is taken for the name that it stands for.
    """
    if issubclass(kind, PluginSection):
        if isinstance(values, str):
            values = {kind.selector: values}
        elif isinstance(values, dict) and "target" in values:
            values = {kind.selector: "target", **values}
        values = _canonical(kind, values)
    if not isinstance(values, dict):
        return values
    inner = dict(_sections(kind))
    return {k: expand(inner[k], v) if k in inner and v is not None else v for k, v in values.items()}


def _canonical(kind: type[PluginSection], values: Any) -> Any:
    name = values.get(kind.selector) if isinstance(values, dict) else None
    found = match(name, kind.members()) if isinstance(name, str) else None
    return values if found is None else {**values, kind.selector: found}


def specialise(kind: type[S], values: Any, path: Path_, mistakes: Mistakes) -> type[S]:
    """The subtype of `kind` whose plugin sections have the fields of the members that `values` names."""
    values = values if isinstance(values, dict) else {}
    fields: dict[str, Any] = {}
    for word, section in _sections(kind):
        fields[word] = _with(kind, word, specialise(section, values.get(word), (*path, word), mistakes))
    if issubclass(kind, PluginSection):
        name = values.get(kind.selector, kind.default)
        if name in kind.members():
            fields |= kind.member_fields(name)
        elif isinstance(name, str):
            mistakes.append(((*path, kind.selector), f"no '{name}' here{nearest(name, kind.members())}"))
            return create_model(kind.__name__, __base__=kind, __cls_kwargs__={"extra": "allow"}, **fields)
    return create_model(kind.__name__, __base__=kind, **fields)


def json_schema() -> dict[str, Any]:
    """JSON Schema of the YAML file, every plugin's options included."""
    definitions: dict[str, Any] = {}
    schema = _schema(Config, definitions)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "$defs": definitions}


def _schema(kind: type[Section], definitions: dict[str, Any]) -> dict[str, Any]:
    plain = kind.model_json_schema(ref_template="#/$defs/{model}")
    definitions |= {k: v for k, v in plain.pop("$defs", {}).items() if k not in definitions}
    for word, section in _sections(kind):
        plain["properties"][word] = _schema(section, definitions)
    if not issubclass(kind, PluginSection):
        return plain
    members = [_member_schema(kind, name, plain) for name in kind.members()]
    return {"anyOf": [{"enum": kind.members()}, *members]}


def _member_schema(kind: type[PluginSection], name: str, plain: dict[str, Any]) -> dict[str, Any]:
    options: type[Section] = create_model(name, __base__=Section, **kind.member_fields(name))
    own = options.model_json_schema()
    properties = {**plain["properties"], **own.get("properties", {}), kind.selector: {"const": name}}
    required = own.get("required", [])
    if name != "target" and name != kind.default:
        required = [kind.selector, *required]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _sections(kind: type[Section]) -> Iterator[tuple[str, type[Section]]]:
    for word, info in kind.model_fields.items():
        for choice in get_args(info.annotation) or (info.annotation,):
            if isinstance(choice, type) and issubclass(choice, Section):
                yield word, choice


def _with(kind: type[Section], word: str, section: type[Section]) -> tuple[Any, Any]:
    """Field definition of `word` with `section` as its type, and a default of that type where there was one."""
    info = kind.model_fields[word]
    if type(None) in get_args(info.annotation):
        return (section | types.NoneType, info.default)
    return (section, ... if info.is_required() else Field(default_factory=section))


def _explained(error: ValidationError, kind: type[Section], values: dict[str, Any]) -> Mistakes:
    """One mistake a path: pydantic reports every branch of a union, and we say 'expected this or that'."""
    found: dict[Path_, list[str]] = {}
    for item in error.errors():
        path, at = _written(item["loc"], values)
        if item["type"] == "extra_forbidden":
            text = f"unknown key{nearest(str(path[-1]), _fields(kind, path[:-1]))}"
        elif item["type"] == "missing":
            text = "is missing"
        elif item["type"] in {"model_type", "model_attributes_type"}:
            text = f"expected fields ({', '.join(_fields(kind, path))}), got {at!r}"
        elif item["type"] == "value_error":
            text = item["msg"].removeprefix("Value error, ")
        else:
            text = item["msg"].replace("Input should be ", "").replace("Input should have ", "")
            text = f"expected {text.replace('a valid integer', 'an integer').replace('a valid ', 'a ')}, got {at!r}"
        found.setdefault(path, []).append(text)
    return [(path, _either(texts)) for path, texts in found.items()]


def _either(texts: list[str]) -> str:
    if len(texts) == 1:
        return texts[0]
    wanted = [t.removeprefix("expected ").partition(", got ")[0] for t in texts]
    return f"expected {' or '.join(wanted)}, got {texts[-1].partition(', got ')[2]}"


def _written(loc: tuple[str | int, ...], values: Any) -> tuple[Path_, Any]:
    """The part of pydantic's location that the user wrote (a missing key included), and the value there."""
    path: Path_ = ()
    for i, word in enumerate(loc):
        if isinstance(values, dict) and (word in values or i == len(loc) - 1):
            values = values.get(word)
        elif isinstance(values, list) and isinstance(word, int):
            values = values[word]
        else:
            break
        path = (*path, word)
    return path, values


def _fields(kind: type[Section], path: Path_) -> list[str]:
    for word in path:
        kind = dict(_sections(kind)).get(str(word), Section)
    return list(kind.model_fields)


def parse_document(text: str) -> tuple[Config, Launch]:
    """The configuration and launch that `ddl run` put on the command line of every rank."""
    values = strict_json.loads_exact(text)
    document = Document(values["config"], "configuration")
    return resolve(document), Launch.model_validate(values["launch"])


def to_document(config: Config, launch: Launch) -> str:
    """JSON from which `parse_document` makes the same two, but for what ranks need not know (`slurm`).

    Defaults are left out, so that a person can read it.
    """
    parts = {"config": _written_fields(config), "launch": launch.model_dump(exclude_defaults=True)}
    return strict_json.dumps_exact(parts, separators=(",", ":"))


def _written_fields(section: Section) -> dict[str, Any]:
    dump = section.model_dump(exclude_unset=True, exclude={"slurm"})
    return {k: v for k, v in dump.items() if v != {}}


__all__ = ["Config", "Launch", "UserError", "json_schema", "parse_document", "resolve", "to_document"]

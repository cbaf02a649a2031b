"""The sections and fields of the YAML file."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    create_model,
    model_validator,
)

from hvd_train.config import parameters, plugins, targets, torch_optimizers, torchmetrics_source
from hvd_train.config.compress_model import CompressModelSection
from hvd_train.config.fold_section import FoldSection
from hvd_train.config.options import Fraction
from hvd_train.config.section import TARGET, PluginSection, Section
from hvd_train.errors import UserError, install_remedy


class ModelSection(PluginSection):
    package: ClassVar[str] = "hvd_train.models.zoo"
    passed: ClassVar[tuple[str, ...]] = ("spec",)
    product: ClassVar[str] = "a torch.nn.Module"
    name: str = Field(description="model to train (ddl list models); 'target' in its place names your own")
    freeze: list[str] = Field(
        [],
        description="parameters that keep their first values, by names with * and ?, such as bert.embeddings.*; they have no "
        "gradient and no optimizer state, and ranks send nothing of them",
    )

    @classmethod
    def count_passed(cls, positional: Sequence[str]) -> int:
        """Return 1 if the first parameter is called `spec`: most modules take no DataSpec."""
        return int(positional[:1] == ["spec"])


class PartitionSection(PluginSection):
    package: ClassVar[str] = "hvd_train.data.partitions"
    default: ClassVar[str | None] = "random"
    product: ClassVar[str] = "a Partitioner"
    name: str = Field("random", description="how the samples are divided among the workers (ddl list partitions)")


class CollateSection(PluginSection):
    package: ClassVar[str] = "hvd_train.data.collates"
    default: ClassVar[str | None] = "stack"
    called_with: ClassVar[int] = 1
    product: ClassVar[str] = "a function of a list of samples"
    name: str = Field("stack", description="how samples become a batch (ddl list collates)")


class TransformSection(PluginSection):
    package: ClassVar[str] = "hvd_train.data.transforms"
    passed: ClassVar[tuple[str, ...]] = ("context",)
    product: ClassVar[str] = "a Transform"
    name: str = Field(description="transform of training samples (ddl list transforms)")

    @classmethod
    def count_passed(cls, positional: Sequence[str]) -> int:
        """Return 1 if the first parameter is called `context`."""
        return int(positional[:1] == ["context"])


class DataSection(PluginSection):
    package: ClassVar[str] = "hvd_train.data.sources"
    product: ClassVar[str] = "a Dataset"
    name: str = Field(description="source of the samples (ddl list data); 'target' in its place names your own")
    batch_size: PositiveInt = Field(
        32,
        description="samples in a micro-batch of one copy of the model; without 'parallel', the global batch is np times "
        "batch_size",
    )
    fold: FoldSection | None = Field(
        None,
        description="cross-validation: hold out one fold of the samples, in place of a fraction or given test samples",
    )
    partition: PartitionSection = Field(default_factory=PartitionSection)
    collate: CollateSection = Field(default_factory=CollateSection)
    transforms: list[TransformSection] = Field([], description="transforms of the training samples, in their order")
    label_key: str | None = Field(
        None,
        description="key of the targets in samples that are dicts; by default the first of labels, label, targets, target "
        "and y that a sample has",
    )
    bucket: PositiveInt | None = Field(
        None,
        description="length bucketing: batches have samples of similar length, which are sorted in windows of so many steps; "
        "by default none",
    )
    on_error: Literal["error", "skip"] = Field(
        "error", description="damaged samples of sources that decode them; skip: leave them out and count them"
    )
    workers: Literal["auto"] | NonNegativeInt = Field(
        "auto",
        description="workers of each rank that make batches while it trains; 0: the training thread makes them; auto: none for "
        "arrays, for batches that are made in 5 ms, and for samples that keep the only processor of the rank busy, otherwise "
        "half of the processors, from 1 to 8",
    )
    worker_type: Literal["processes", "threads"] = Field(
        "processes",
        description="threads: nothing is pickled, samples share Python's lock, and random augmentation of your own must use "
        "no global generator",
    )
    prefetch: Annotated[int, Field(ge=1, le=32)] = Field(2, description="batches that each worker makes ahead")


class GroupSection(Section):
    """Parameters with options of their own. `OptimizerSection` adds the options of the optimizer."""

    match: str | Annotated[list[str], Field(min_length=1)] = Field(
        "*", description="pattern of the names of the parameters, or several, such as encoder.*; by default all"
    )
    kind: Literal["bias", "norm"] | Annotated[list[Literal["bias", "norm"]], Field(min_length=1)] | None = Field(
        None, description="bias: only biases; norm: only weights and biases of normalisation layers; or both in a list"
    )

    @property
    def patterns(self) -> list[str]:
        return [self.match] if isinstance(self.match, str) else self.match

    @property
    def kinds(self) -> list[str]:
        """The kinds of the parameters; empty for all kinds."""
        return [] if self.kind is None else [self.kind] if isinstance(self.kind, str) else [*self.kind]

    @property
    def options(self) -> dict[str, Any]:
        """The options of the optimizer that the user wrote."""
        own = GroupSection.model_fields
        given = {key: getattr(self, key) for key in type(self).model_fields if key not in own}
        return {key: value for key, value in given.items() if value is not None}


class OptimizerSection(PluginSection):
    default: ClassVar[str | None] = "SGD"
    takes_target: ClassVar[bool] = False
    name: str = Field("SGD", description="class of torch.optim (ddl list optimizers)")
    groups: list[GroupSection] = Field(
        [],
        description="parameters with options of their own, such as [{kind: [bias, norm], weight_decay: 0.0}]; of several "
        "groups that a parameter is in, the last one counts",
    )

    @classmethod
    def members(cls) -> list[str]:
        return sorted(torch_optimizers.modules())

    @classmethod
    def member_fields(cls, name: str) -> dict[str, Any]:
        return torch_optimizers.options(name)

    @classmethod
    def fields_with(cls, name: str) -> dict[str, Any]:
        options = cls.member_fields(name)
        # Without a default, so that a written value counts even if it is torch's default.
        free: dict[str, Any] = {key: (kind | None, None) for key, (kind, _) in options.items()}
        group = create_model(f"{name}Group", __base__=GroupSection, **free)
        return {**options, "groups": (list[group], cls.model_fields["groups"])}  # type: ignore[valid-type]

    @property
    def options(self) -> dict[str, Any]:
        """The options that the user wrote. Torch has the defaults of the others."""
        return {k: v for k, v in super().options.items() if k in self.model_fields_set}


class ScheduleSection(Section):
    name: Literal["constant", "cosine", "linear", "step"] = Field(
        "constant", description="schedule of the learning rate after the warmup"
    )
    warmup_steps: NonNegativeInt = Field(0, description="steps in which the learning rate rises linearly from zero")
    warmup: Fraction = Field(
        0.0,
        description="share of all steps in which the learning rate rises linearly from zero; exclusive with 'warmup_steps'",
    )
    final: Fraction = Field(
        0.0, description="cosine and linear: fraction of the learning rate that remains at the last step"
    )
    every: PositiveInt = Field(1000, description="step: steps between two reductions of the learning rate")
    factor: Annotated[float, Field(gt=0, le=1)] = Field(0.1, description="step: factor of each reduction")
    scale_by_world_size: bool = Field(
        False, description="multiply the learning rate by the number of ranks (linear scaling rule)"
    )

    @model_validator(mode="after")
    def _one_warmup(self) -> ScheduleSection:
        if self.warmup and self.warmup_steps:
            raise ValueError("give 'warmup' or 'warmup_steps', not both")
        return self


Mode = Literal["min", "max"]


def _target(text: str) -> str:
    try:
        targets.check(text)
    except UserError as error:
        raise ValueError(str(error)) from None
    return text


class MetricSection(PluginSection):
    """A metric of the held-out samples. A target is a class of torchmetrics metrics, or a function."""

    called_with: ClassVar[int] = 2
    product: ClassVar[str] = "a torchmetrics.Metric, or a function of outputs and targets"
    name: str = Field(description="class of torchmetrics (ddl list metrics)")
    key: Annotated[str, Field(pattern=r"^[A-Za-z]\w*$")] | None = Field(
        None, description="name of the metric in the records; by default that of the class, as f1_score for F1Score"
    )
    prepare: Annotated[str, AfterValidator(_target)] | None = Field(
        None,
        description="package.module:callable that makes the arguments of the metric's update from (outputs, batch), such as "
        "decoded texts",
    )

    @classmethod
    def members(cls) -> list[str]:
        return sorted(torchmetrics_source.modules())

    @classmethod
    def member_fields(cls, name: str) -> dict[str, Any]:
        return torchmetrics_source.options(name)

    @classmethod
    def unknown(cls, name: str) -> str:
        if torchmetrics_source.is_installed():
            return super().unknown(name)
        return f"'{name}' is of torchmetrics, which is not installed; {install_remedy('metrics')}"

    @property
    def module(self) -> str:
        """The module that exports the class."""
        return torchmetrics_source.modules()[self.member]

    @property
    def choices(self) -> dict[str, Any]:
        """The options of the class and their defaults, ... for a required one."""
        return {name: default for name, (_, default) in self.member_fields(self.member).items()}

    @property
    def options(self) -> dict[str, Any]:
        """The options that the user wrote. torchmetrics has the defaults of the others."""
        written = super().options
        return written if self.member == TARGET else {k: v for k, v in written.items() if k in self.model_fields_set}


class EarlyStopSection(Section):
    metric: str = Field(
        "loss", description="evaluation metric that has to improve, such as 'loss' or 'f1_score'; agents: return"
    )
    mode: Mode | None = Field(
        None, description="max: a larger value is better; needed for metrics that do not say so themselves"
    )
    patience: PositiveInt = Field(3, description="evaluations without improvement after which training ends")
    min_delta: NonNegativeFloat = Field(0.0, description="smallest change that counts as an improvement")


class ConvergeSection(Section):
    metric: str = Field(
        "accuracy", description="evaluation metric to reach, such as 'accuracy' or 'f1_score'; agents: return"
    )
    mode: Mode | None = Field(
        None, description="max: the metric has to rise to the value; needed for metrics that do not say so themselves"
    )
    value: float = Field(description="value of the metric at which training ends")


class LossSection(PluginSection):
    """A loss. A target is a function of outputs and batch, or a class of such objects."""

    package: ClassVar[str] = "hvd_train.compute.losses"
    default: ClassVar[str | None] = "auto"
    called_with: ClassVar[int] = 2
    product: ClassVar[str] = "a function of outputs and batch"
    name: str = Field("auto", description="loss (ddl list losses)")


class AgentSection(PluginSection):
    package: ClassVar[str] = "hvd_train.agents.algorithms"
    passed: ClassVar[tuple[str, ...]] = ("context",)
    product: ClassVar[str] = "an Agent"
    name: str = Field(description="learning algorithm of an agent (ddl list agents)")
    normalise_observations: bool = Field(
        False, description="scale observations to mean 0 and variance 1 over all that all ranks have seen"
    )
    normalise_rewards: bool = Field(
        False, description="divide rewards by the standard deviation of the discounted returns of all ranks"
    )
    reward_scale: PositiveFloat = Field(1.0, description="factor of the rewards that the agent learns from")


class AdversarialSection(PluginSection):
    """Training on perturbed samples. The members are the attacks that need gradients of the training loss alone."""

    package: ClassVar[str] = "hvd_train.compute.attacks"
    takes_target: ClassVar[bool] = False
    name: str = Field(description="attack that perturbs the training samples")
    epsilon: NonNegativeFloat = Field(
        0.03,
        description="largest size of a perturbation: in pixel values of 0 to 1, in standard deviations of the columns of a "
        "table, or in the units of other inputs",
    )
    norm: Literal["linf", "l2"] = Field(
        "linf", description="linf: epsilon limits the change of each value; l2: the length of all changes of a sample"
    )
    share: Annotated[float, Field(ge=0, le=1)] = Field(
        1.0, description="share of the samples that are perturbed, chosen at random in each step"
    )

    @classmethod
    def members(cls) -> list[str]:
        return [name for name in super().members() if _constant(plugins.source(cls.package, name), "TRAINS")]


class EmaSection(Section):
    shorthand: ClassVar[str | None] = "decay"
    decay: Fraction = Field(
        description="weight of the average at each step; the parameters after the step have the rest"
    )
    warmup: bool = Field(
        False, description="let the weight grow as (1 + step) / (10 + step) until it reaches decay, for short runs"
    )


class TrainSection(Section):
    epochs: PositiveInt | None = Field(
        None, description="passes over the data; exclusive with 'steps' (10 epochs if neither is given)"
    )
    steps: PositiveInt | None = Field(None, description="optimizer steps; exclusive with 'epochs'")
    env_steps: PositiveInt | None = Field(
        None, description="agents: steps of all environments together; exclusive with 'epochs' and 'steps'"
    )
    max_seconds: PositiveFloat | None = Field(
        None, description="training ends at the first evaluation after this many seconds of training"
    )
    max_bytes: PositiveInt | None = Field(
        None, description="training ends at the first evaluation after all ranks together sent this many bytes"
    )
    accumulate: PositiveInt = Field(1, description="micro-batches whose gradients are summed in one step")
    clip_norm: PositiveFloat | None = Field(None, description="upper limit of the global norm of the gradient")
    precision: Literal["fp32", "fp64", "bf16", "fp16"] = Field(
        "fp32", description="dtype of the computation; bf16 and fp16 use autocast"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto: a GPU for each rank if torch finds GPUs, otherwise the CPU"
    )
    loss: LossSection = Field(default_factory=LossSection)
    compile: bool = Field(
        False, description="compile the model by torch.compile; the first steps take seconds to minutes longer"
    )
    noise_scale: bool = Field(
        False, description="record the gradient noise scale, an estimate of the largest batch size that pays off"
    )
    eval_every: PositiveInt | Literal["epoch"] = Field(
        "epoch",
        description="steps between two evaluations; training also ends with one. The epochs of agents are short: 'epoch' means "
        "the end of an epoch after every 'eval_env_steps'",
    )
    eval_env_steps: PositiveInt = Field(
        5000, description="agents: steps of all environments between two evaluations, and between two checkpoints"
    )
    eval_samples: PositiveInt | None = Field(
        None,
        description="largest number of samples in an evaluation of each held-out split, at equal distances; the same ones "
        "every time",
    )
    metrics: list[MetricSection] = Field(
        [],
        description="metrics of the held-out samples beside loss and accuracy: names of torchmetrics (ddl list metrics), or "
        "{name: ..., key: NAME_IN_RECORDS, prepare: package.module:callable, options}, or {target: ...}; see docs/metrics.md",
    )
    log_every: PositiveInt = Field(10, description="steps between two records of training metrics")
    ema: EmaSection | None = None
    adversarial: AdversarialSection | None = None
    early_stop: EarlyStopSection | None = None
    converge: ConvergeSection | None = None

    @model_validator(mode="after")
    def _one_length(self) -> TrainSection:
        given = [name for name in ("epochs", "steps", "env_steps") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"give '{given[0]}' or '{given[1]}', not both")
        return self


class CompressionSection(PluginSection):
    package: ClassVar[str] = "hvd_train.gradients.compressors"
    default: ClassVar[str | None] = "none"
    product: ClassVar[str] = "a Compressor"
    name: str = Field("none", description="how gradients are compressed before they are sent (ddl list compressors)")


class SyncSection(PluginSection):
    package: ClassVar[str] = "hvd_train.sync.strategies"
    selector: ClassVar[str] = "strategy"
    default: ClassVar[str | None] = "allreduce"
    passed: ClassVar[tuple[str, ...]] = ("context",)
    product: ClassVar[str] = "a SyncStrategy"
    strategy: str = Field("allreduce", description="what the ranks synchronise, and when (ddl list strategies)")
    compression: CompressionSection = Field(default_factory=CompressionSection)
    fusion_mb: Literal["auto"] | NonNegativeFloat = Field(
        "auto",
        description="MiB of gradients reduced at once; 0: each tensor by itself; auto: measured at the first start, and a "
        "fixed size if the compression works on whole buckets, so that two runs are equal",
    )

    @property
    def asynchronous(self) -> bool:
        """True if the other ranks continue after a rank died.

        The module of the strategy says so: `ASYNCHRONOUS` is True, or the name of the option that
        decides.
        """
        module = self.source()
        value = _constant(module, "ASYNCHRONOUS") if module else False
        return bool(self._option(value)) if isinstance(value, str) else bool(value)

    def _option(self, name: str) -> Any:
        """Return the option `name`, or its default in the source of a target."""
        known = parameters.read(self.label, self.count_passed) if self.member == TARGET else None
        default = known[name].default if known and name in known else None
        return self.options.get(name, default)


class ParallelSection(Section):
    pipeline: PositiveInt = Field(
        1,
        description="stages of the pipeline, each on ranks of its own; the train.accumulate micro-batches pass through them "
        "one after another; pipeline x tensor ranks hold one copy of the model, and np is a multiple of that number",
    )
    tensor: PositiveInt = Field(
        1,
        description="ranks that share each linear layer and its attention heads; every layer waits for sums over these "
        "ranks, so keep them on one host",
    )
    schedule: Literal["1f1b", "gpipe"] = Field(
        "1f1b",
        description="order of the micro-batches; 1f1b keeps the activations of at most 'pipeline' micro-batches, gpipe of "
        "all",
    )


class BestSection(Section):
    """The checkpoint to keep besides the newest ones; the file checkpoints/best.json names it."""

    shorthand: ClassVar[str | None] = "metric"
    metric: str = Field(description="evaluation metric whose best value's checkpoint is kept, such as 'accuracy'")
    mode: Mode | None = Field(
        None, description="max: a larger value is better; needed for metrics that do not say so themselves"
    )


class CheckpointSection(Section):
    every: PositiveInt | Literal["epoch"] = Field(
        "epoch", description="steps between two checkpoints; training also ends with one"
    )
    keep: PositiveInt = Field(3, description="number of the newest checkpoints to keep")
    best: BestSection | None = None


class SinkSection(PluginSection):
    """A metric sink of the user. The sinks of ddl itself are always there."""

    default: ClassVar[str | None] = TARGET
    passed: ClassVar[tuple[str, ...]] = ("folder",)
    product: ClassVar[str] = "a Sink"
    name: Literal["target"] = Field("target", description="always 'target'")

    @classmethod
    def members(cls) -> list[str]:
        return []


class MonitorSection(Section):
    sinks: list[SinkSection] = Field(
        [],
        description="sinks of your own that receive the metrics on rank 0, each as {target: package.module:callable}",
    )


class Config(Section):
    """One run."""

    seed: NonNegativeInt = Field(0, description="seed of the initial parameters, of the partition and of noise")
    model: ModelSection
    data: DataSection
    agent: AgentSection | None = None
    optimizer: OptimizerSection = Field(default_factory=OptimizerSection)
    schedule: ScheduleSection = Field(default_factory=ScheduleSection)
    train: TrainSection = Field(default_factory=TrainSection)
    compress_model: CompressModelSection = Field(default_factory=CompressModelSection)
    parallel: ParallelSection = Field(default_factory=ParallelSection)
    sync: SyncSection = Field(default_factory=SyncSection)
    checkpoint: CheckpointSection = Field(default_factory=CheckpointSection)
    monitor: MonitorSection = Field(default_factory=MonitorSection)

    @model_validator(mode="after")
    def _goal_of_agents(self) -> Config:
        """Let goals without a metric be those of the return if an agent learns."""
        for section in (self.train.early_stop, self.train.converge):
            if self.agent is not None and section is not None and "metric" not in section.model_fields_set:
                section.metric = "return"
        return self


def _constant(module: ast.Module, name: str) -> Any:
    """Return the value that `module` assigns to `name`, False if it assigns none.

    UserError for other than a literal.
    """
    for node in module.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            try:
                return ast.literal_eval(node.value)
            except ValueError:
                raise UserError(f"{name}: expected True, False or the name of an option, as a literal") from None
    return False

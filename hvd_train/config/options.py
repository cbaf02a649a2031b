"""The types for the options of a plugin, that is for the keyword-only parameters of its `create`.

`plugins.options` reads the annotations from the source, without importing the plugin, and evaluates
them in the namespace of this module. So `ddl validate` checks the options of a model without
importing torch. The text in `Annotated[type, "text"]` describes the option in `ddl list` and in the
JSON Schema. An option of type `SourceSection` is a section that chooses a data source, one of type
`list[SourceSection]` a list of such sections, and `TokenizerSection` chooses a tokenizer; `create`
gets the sections.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from hvd_train.config.lora_section import LoraSection
from hvd_train.config.source_section import SourceSection
from hvd_train.config.tokenizer_section import TokenizerSection

Fraction = Annotated[float, Field(ge=0, lt=1)]

# Of the sources whose files have no test samples of their own.
HeldOutFraction = Annotated[Fraction, "fraction of the samples that is held out for evaluation without test_path"]
HeldOutSeed = Annotated[NonNegativeInt, "seed that chooses the held-out samples"]

# Of tables.
TargetColumn = Annotated[str, "name of the column to predict"]
FeatureColumns = Annotated[list[str], "names of the columns that are inputs; empty: all columns but the target"]
TableTask = Annotated[
    Literal["auto", "classification", "regression"],
    "auto: texts and integers are classes, other numbers a regression",
]
Standardise = Annotated[bool, "scale each number to mean 0 and standard deviation 1 over the training rows"]
Categorical = Annotated[
    Literal["error", "onehot", "code"],
    "texts among the inputs; onehot: one input for each text of the training rows; code: one input, the number of the "
    "text from 1; error: exit code 2",
]
MissingValues = Annotated[
    Literal["error", "mean", "drop"],
    "missing values; mean: the mean of the training rows (a missing text counts as unknown); drop: leave out rows with "
    "missing values; error: exit code 2",
]
TestRows = Annotated[
    str | dict[str, str] | None,
    "file with the test rows, prepared as the training rows; several by name: the first is the test split",
]

# Of files of images and sounds.
MediaPath = Annotated[
    str,
    "folder with a folder for each class, at any depth; or a .csv, .parquet or .jsonl file of paths and labels. Hidden "
    "files and files with other endings are skipped",
]
TestMedia = Annotated[
    str | dict[str, str] | None,
    "folder or table of the test samples; or several by name, the first of them the main one",
]
PathColumn = Annotated[str, "column of a table with the path of a file, from the folder of the table"]
LabelColumn = Annotated[str, "column of a table with the target; texts and integers are classes, floats a regression"]
LabelTask = Annotated[Literal["auto", "classification", "regression"], "what the labels of a table are"]
TableDelimiter = Annotated[str, Field(min_length=1, max_length=1), "character between two values of a .csv table"]
MediaRoot = Annotated[str | None, "folder that the paths of a table begin at; by default the folder of the table"]

# Of models of sequences.
PerStep = Annotated[
    bool, "return log-probabilities of every step, as for the loss ctc, in place of scores of the sequence"
]

# Of records whose fields are texts, images, sounds and numbers.
RecordTask = Annotated[
    Literal["auto", "classification", "regression", "language"],
    "auto: texts and integers are classes, other numbers a regression; language: texts become tokens",
]
Tokenizer = Annotated[
    TokenizerSection | None, "how texts become tokens: bytes, file, bpe or a target; none: texts stay texts"
]
TextLength = Annotated[PositiveInt, "most tokens of a text; longer texts are cut"]
ImageSize = Annotated[
    Annotated[list[PositiveInt], Field(min_length=2, max_length=2)] | None,
    "[height, width] that images are scaled and cropped to; none: images keep their size",
]
ImageMode = Annotated[Literal["rgb", "grey"], "channels of images: three or one"]
AudioRate = Annotated[
    PositiveInt | None, "samples per second that sounds are resampled to; none: sounds keep their rate"
]

# Of pretrained models.
Lora = Annotated[
    LoraSection | None,
    "train low-rank updates of linear layers, and the head, in place of all weights; needs peft; none: train all weights",
]

# Of models that recommend.
SparseRows = Annotated[
    bool,
    "sparse gradients: a step sends and updates only the rows of its users and items, which is faster from about 10,000 "
    "rows on",
]

# Of losses over classes.
ClassWeights = Annotated[
    Literal["balanced"] | list[PositiveFloat] | None,
    "weight of each class; balanced: the inverse of its frequency",
]
IgnoreIndex = Annotated[int, "target of samples and positions that count nothing"]

# Of environments.
EnvCopies = Annotated[PositiveInt, "copies of the environment on each worker"]
RolloutSteps = Annotated[PositiveInt, "steps of each copy in an epoch"]
EvaluationEpisodes = Annotated[NonNegativeInt, "episodes of each evaluation"]
EpisodeSeed = Annotated[NonNegativeInt, "seed of the episodes of evaluations"]
EnvArguments = Annotated[dict[str, Any], "keyword arguments of the environment"]
EnvVariants = Annotated[
    list[dict[str, Any]], "further keyword arguments, which 'variants_by' gives in turn, so that environments differ"
]
VariantsBy = Annotated[
    Literal["copy", "worker"],
    "copy: the copies of each worker differ; worker: those of one worker are alike, as for members of a population. "
    "Evaluations play all variants in turn",
]
EpisodeSteps = Annotated[
    PositiveInt | None,
    "steps after which an episode is cut off; by default the limit of the environment, of the first variant",
]
CutAt = Annotated[
    Annotated[float, Field(gt=0, le=1)] | None,
    "share of the workers that are done with an epoch's steps from which the others end theirs early, though not before "
    "a quarter of them; nobody then waits for slow environments, and two runs differ. By default all make all steps",
]

# Of agents.
Discount = Annotated[Annotated[float, Field(ge=0, le=1)], "weight of a reward that comes one step later"]
GaeLambda = Annotated[
    Annotated[float, Field(ge=0, le=1)],
    "weight of later estimates in an advantage (GAE); 0: one step, 1: all rewards of the episode",
]
Passes = Annotated[PositiveInt, "passes over the samples of an epoch"]
ClipRange = Annotated[PositiveFloat, "largest change of the probability of an action that pays off"]
ValueWeight = Annotated[NonNegativeFloat, "weight of the squared error of the value"]
EntropyWeight = Annotated[NonNegativeFloat, "weight of the entropy, which keeps the policy exploring"]
NormaliseAdvantages = Annotated[bool, "scale advantages to mean 0 and variance 1 over all ranks"]
LargestRatio = Annotated[
    PositiveFloat, "largest weight of a sample whose action has become more probable than when it was taken"
]
TableRate = Annotated[
    Annotated[float, Field(gt=0, le=1)],
    "learning rate of an entry of the table for each of its visits; the optimizer must be SGD with lr 1.0",
]
VisitPower = Annotated[
    Annotated[float, Field(ge=0, le=1)],
    "the rate of an entry is divided by this power of its visits, for environments with chance; 0: it is constant",
]
ExplorationKind = Annotated[
    Literal["epsilon_greedy", "boltzmann"],
    "epsilon_greedy: a random action with probability epsilon; boltzmann: all actions by their values over a temperature",
]
FirstExploration = Annotated[NonNegativeFloat, "epsilon or temperature at the start of the run"]
FinalExploration = Annotated[NonNegativeFloat, "epsilon or temperature at the end of exploration_share"]
ExplorationShare = Annotated[
    Annotated[float, Field(ge=0, le=1)],
    "part of train.env_steps in which exploration falls linearly from its first to its final value",
]

__all__ = [
    "Annotated",
    "Any",
    "AudioRate",
    "Categorical",
    "ClassWeights",
    "ClipRange",
    "CutAt",
    "Discount",
    "EntropyWeight",
    "EnvArguments",
    "EnvCopies",
    "EnvVariants",
    "EpisodeSeed",
    "EpisodeSteps",
    "EvaluationEpisodes",
    "ExplorationKind",
    "ExplorationShare",
    "FeatureColumns",
    "Field",
    "FinalExploration",
    "FirstExploration",
    "Fraction",
    "GaeLambda",
    "HeldOutFraction",
    "HeldOutSeed",
    "IgnoreIndex",
    "ImageMode",
    "ImageSize",
    "LabelColumn",
    "LabelTask",
    "LargestRatio",
    "Literal",
    "Lora",
    "MediaPath",
    "MediaRoot",
    "MissingValues",
    "NonNegativeFloat",
    "NonNegativeInt",
    "NormaliseAdvantages",
    "Passes",
    "PathColumn",
    "PerStep",
    "PositiveFloat",
    "PositiveInt",
    "RecordTask",
    "RolloutSteps",
    "SourceSection",
    "SparseRows",
    "Standardise",
    "TableDelimiter",
    "TableRate",
    "TableTask",
    "TargetColumn",
    "TestMedia",
    "TestRows",
    "TextLength",
    "Tokenizer",
    "TokenizerSection",
    "ValueWeight",
    "VariantsBy",
    "VisitPower",
]

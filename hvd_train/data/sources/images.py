"""Image files (JPEG, PNG, TIFF, WebP, BMP, PGM), in a folder for each class or by a table."""

from __future__ import annotations

from hvd_train.config.fold_section import FoldSection
from hvd_train.config.options import (
    Annotated,
    HeldOutFraction,
    HeldOutSeed,
    LabelColumn,
    LabelTask,
    Literal,
    MediaPath,
    MediaRoot,
    PathColumn,
    PositiveInt,
    TableDelimiter,
    TestMedia,
)
from hvd_train.data.base import Dataset
from hvd_train.data.fitted import Fitted
from hvd_train.data.hold_out import HoldOut
from hvd_train.data.media.dataset import Division, dataset
from hvd_train.data.media.image import SUFFIXES, ImageDecoder, normalisation, sides
from hvd_train.data.media.listing import Layout
from hvd_train.data.memory.node import ALONE, Node


def create(
    node: Node = ALONE,
    fitted: Fitted | None = None,
    fold: FoldSection | None = None,
    *,
    path: MediaPath,
    test_path: TestMedia = None,
    test_fraction: HeldOutFraction = 0.2,
    seed: HeldOutSeed = 0,
    mode: Annotated[
        Literal["rgb", "grey"],
        "channels of an input: three or one; transparent pixels become white, and 16-bit greys keep their precision",
    ] = "rgb",
    size: Annotated[
        PositiveInt | list[PositiveInt] | None,
        "side in pixels, or [height, width]; by default all files must have the size of the first",
    ] = None,
    resize: Annotated[
        Literal["stretch", "crop", "pad"],
        "crop: cut off the ends of the longer side; pad: add black at the shorter side; stretch: change the ratio of the sides",
    ] = "crop",
    normalise: Annotated[
        Literal["none", "half", "imagenet"] | dict[str, list[float]],
        "mean and std, such as {mean: [0.5], std: [0.5]}, that standardise pixels of 0 to 1; half: 0.5 and 0.5, so that pixels "
        "are in -1 to 1; imagenet: those of ImageNet; none: pixels are in 0 to 1",
    ] = "none",
    path_column: PathColumn = "path",
    label_column: LabelColumn = "label",
    task: LabelTask = "auto",
    delimiter: TableDelimiter = ",",
    root: MediaRoot = None,
) -> Dataset:
    """Return inputs of shape (channels, height, width) in float32, decoded when they are used.

    Classes are numbered in sorted order of their names.
    """
    hold_out = HoldOut(test_fraction, seed, fold)
    layout = Layout(SUFFIXES, path_column, label_column, task, delimiter, root, hold_out.group)
    decoder = ImageDecoder(mode, sides(size), resize, *normalisation(normalise, mode))
    return dataset(path, Division(test_path, hold_out), layout, lambda file: decoder, fitted)

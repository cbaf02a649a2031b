"""Image files, decoded, resized and normalised as in training."""

from __future__ import annotations

from hvd_train.data.media.image import SUFFIXES, ImageDecoder
from hvd_train.trained.input import InputContext
from hvd_train.trained.media_input import MediaInput

REMEDY = "a run with data.size resizes all files"


def create(context: InputContext) -> MediaInput:
    return MediaInput(context, ImageDecoder.of(context.document), "image", SUFFIXES, REMEDY)

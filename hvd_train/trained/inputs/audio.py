"""Sound files, resampled, cut and turned into features as in training."""

from __future__ import annotations

from hvd_train.data.media.audio import SUFFIXES, AudioDecoder
from hvd_train.trained.input import InputContext
from hvd_train.trained.media_input import MediaInput

REMEDY = "a run with data.seconds makes all files as long"


def create(context: InputContext) -> MediaInput:
    return MediaInput(context, AudioDecoder.of(context.document), "audio", SUFFIXES, REMEDY)

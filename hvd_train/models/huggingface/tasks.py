"""The tasks that a model of transformers can be trained for, and what the size of its head is."""

from __future__ import annotations

from typing import Literal, NamedTuple


class Task(NamedTuple):
    """A task of the library."""

    auto: str
    """The class of the library that chooses the class of the model."""
    head: Literal["classes", "tokens"]
    """What the outputs are: classes of the data, or the tokens of the model's vocabulary."""


TASKS = {
    "sequence-classification": Task("AutoModelForSequenceClassification", "classes"),
    "token-classification": Task("AutoModelForTokenClassification", "classes"),
    "causal-lm": Task("AutoModelForCausalLM", "tokens"),
    "masked-lm": Task("AutoModelForMaskedLM", "tokens"),
    "seq2seq": Task("AutoModelForSeq2SeqLM", "tokens"),
    "image-classification": Task("AutoModelForImageClassification", "classes"),
    "audio-classification": Task("AutoModelForAudioClassification", "classes"),
    "speech-ctc": Task("AutoModelForCTC", "classes"),
}

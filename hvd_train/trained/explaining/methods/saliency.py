"""Magnitude of the gradient: how much a small change of each value moves the output."""

from __future__ import annotations

from hvd_train.data.files import import_extra
from hvd_train.trained.explaining.method import Attribution, Method, Question


class Saliency:
    """Simonyan et al., "Deep Inside Convolutional Networks", 2014."""

    completes, signed = False, False

    def __call__(self, question: Question) -> Attribution:
        features = tuple(feature.detach().requires_grad_() for feature in question.features)
        return Attribution(import_extra("captum.attr", "explain").Saliency(question.score).attribute(features))


def create() -> Method:
    return Saliency()

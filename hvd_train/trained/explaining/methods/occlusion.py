"""Change of the output when a column, a token or a part of a picture is replaced by the baseline."""

from __future__ import annotations

from hvd_train.trained.explaining.groups import by_parts
from hvd_train.trained.explaining.method import Attribution, Method, Question


class Occlusion:
    """Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks", 2014.

    The change of the output is divided equally among the values of a part.
    """

    completes, signed = False, True

    def __call__(self, question: Question) -> Attribution:
        return Attribution(by_parts("FeatureAblation", question))


def create() -> Method:
    return Occlusion()

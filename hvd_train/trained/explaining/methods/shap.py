"""Shapley values of columns, tokens or parts of a picture, estimated from random orders of them."""

from __future__ import annotations

from hvd_train.trained.explaining.groups import by_parts
from hvd_train.trained.explaining.method import Attribution, Method, Question

ORDERS = 25


class ShapleySampling:
    """Castro et al., "Polynomial calculation of the Shapley value based on sampling", 2009.

    These are the values that Lundberg and Lee, "A Unified Approach to Interpreting Model
    Predictions", 2017, call SHAP. The changes along one order add up to the whole change, so the
    estimate is complete for every number of orders. Kernel SHAP is complete in the limit only.
    """

    completes, signed = True, True

    def __call__(self, question: Question) -> Attribution:
        return Attribution(by_parts("ShapleyValueSampling", question, n_samples=ORDERS), ORDERS)


def create() -> Method:
    return ShapleySampling()

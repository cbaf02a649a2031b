"""The scores of the next token, which are all that a search knows of a model.

A search calls `Scores` once for each place. Its rows may be other ones in each call: sequences end, and a
beam keeps several continuations of a row and drops others. `parents` says which rows continue.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from hvd_train.compute.calling import scores as scores_of
from hvd_train.compute.loss import wide
from hvd_train.data.nesting import map_tensors

DECODER = "decoder_input_ids"
"""The key of the tokens of an encoder-decoder model that it continues."""


class Scores(Protocol):
    """Scores tokens that may follow sequences of equal length."""

    def __call__(self, tokens: Tensor, parents: Tensor | None) -> Tensor:
        """Return the scores `(n, vocabulary)` of the token after each row of `tokens`, int64 `(n, length)`.

        Row i is row `parents[i]` of the call before and one more token. The first call has None.
        """


Start = Callable[[Any], Scores]
"""Begins to generate: takes the inputs of the sequences to continue, one row for each."""


class Recomputed:
    """Runs the model on all tokens at each place, the last `window` of them if it is given.

    `inputs` has the further inputs of the model by name, one row for each sequence; without any, the
    tokens are the input.
    """

    def __init__(
        self, run: Callable[[Any], Any], inputs: Mapping[str, Tensor] | None = None, window: int | None = None
    ) -> None:
        self._run, self._inputs, self._window = run, inputs, window or 0

    def __call__(self, tokens: Tensor, parents: Tensor | None) -> Tensor:
        if parents is not None and self._inputs:
            self._inputs = rows(dict(self._inputs), parents)
        shown = tokens[:, -self._window :]
        return wide(scores_of(self._run(shown if self._inputs is None else {**self._inputs, DECODER: shown})))[:, -1]


class Cached:
    """Calls `advance(tokens, state)` with the new tokens only, which returns their scores and a new state.

    Row i of the tensors in `state` belongs to row i of the tokens.
    """

    def __init__(self, advance: Callable[[Tensor, Any], tuple[Tensor, Any]], state: Any) -> None:
        self._advance, self._state, self._known = advance, state, 0

    def __call__(self, tokens: Tensor, parents: Tensor | None) -> Tensor:
        if parents is not None:
            self._state = rows(self._state, parents)
        found, self._state = self._advance(tokens[:, self._known :], self._state)
        self._known = tokens.shape[1]
        return wide(found[:, -1])


class UpTo:
    """Calls `before` while sequences have at most `longest` tokens, and `after` from then on."""

    def __init__(self, longest: int, before: Scores, after: Scores) -> None:
        self._longest, self._before, self._after = longest, before, after

    def __call__(self, tokens: Tensor, parents: Tensor | None) -> Tensor:
        return (self._before if tokens.shape[1] <= self._longest else self._after)(tokens, parents)


def rows(state: Any, parents: Tensor) -> Any:
    """Return the nesting `state` with the rows `parents` of each tensor."""

    def chosen(x: Tensor) -> Tensor:
        same = len(parents) == len(x) and bool((parents == torch.arange(len(x), device=parents.device)).all())
        return x if same else x.index_select(0, parents.to(x.device))

    return map_tensors(chosen, state)

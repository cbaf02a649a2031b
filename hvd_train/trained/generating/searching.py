"""Search for sequences of tokens: greedy, by a beam, and by sampling. Pure functions of `Scores`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hvd_train.trained.generating.scores import Scores
from hvd_train.trained.generating.search import Search

Choose = Callable[[Tensor, Tensor, int], Tensor]
"""Returns a token for each row, given scores `(m, vocabulary)`, the numbers of the rows in the batch, and
the place from 0."""


@dataclass(frozen=True)
class Limits:
    """When sequences end."""

    steps: int
    """The most new tokens, with the one that ends a sequence."""
    end: int | None = None
    """The token that ends a sequence; None: all have `steps` tokens."""
    least: int = 0
    """The fewest tokens before `end`."""


@dataclass(frozen=True)
class Generated:
    """A sequence that continues a row."""

    tokens: list[int]
    """The new tokens, without the one that ends the sequence."""
    log_probability: float
    """The sum of the logarithms of the probabilities of the new tokens and of the end, if it was reached."""
    ended: bool


def generate(
    scores: Scores, first: Tensor, limits: Limits, search: Search, keys: Sequence[Sequence[int]] | None = None
) -> list[Generated]:
    """Return a continuation of each row of `first`, int64 `(n, length)`.

    The result for a row depends on no other row, except for the rounding of the model: the random numbers
    of a row depend on its `keys`, by default the tokens of `first`.
    """
    if search.sample:
        uniform = uniform_numbers(keys or first.tolist(), limits.steps, search.seed)
        return sampled(scores, first, limits, uniform, search)
    if search.beams > 1:
        return beam(scores, first, limits, search.beams, search.length_penalty)
    return greedy(scores, first, limits)


def greedy(scores: Scores, first: Tensor, limits: Limits) -> list[Generated]:
    """Return sequences of the most probable token at each place."""
    return _one_by_one(scores, first, limits, lambda found, _rows, _place: found.argmax(-1))


def sampled(scores: Scores, first: Tensor, limits: Limits, uniform: Tensor, search: Search) -> list[Generated]:
    """Return sequences of random tokens, from numbers `uniform` in [0, 1) `(n, steps)`, one for each place."""

    def choose(found: Tensor, rows: Tensor, place: int) -> Tensor:
        chances = distribution(found, search.temperature, search.top_k, search.top_p)
        return drawn(chances, uniform[rows, place].to(chances.device))

    return _one_by_one(scores, first, limits, choose)


def _one_by_one(scores: Scores, first: Tensor, limits: Limits, choose: Choose) -> list[Generated]:
    tokens, rows, parents = first, torch.arange(len(first)), None
    totals = torch.zeros(len(first), dtype=torch.float64)
    made: dict[int, Generated] = {}
    for place in range(limits.steps):
        logs = _logs(scores(tokens, parents), limits, place)
        chosen = choose(logs, rows, place)
        totals[rows] += logs.gather(1, chosen[:, None])[:, 0].cpu()
        tokens = torch.cat([tokens, chosen[:, None].to(tokens.device)], 1)
        ends = (chosen == limits.end).cpu() if limits.end is not None else torch.zeros(len(rows), dtype=torch.bool)
        for i in ends.nonzero()[:, 0].tolist():
            row = int(rows[i])
            made[row] = Generated(tokens[i, first.shape[1] : -1].tolist(), float(totals[row]), True)
        parents = (~ends).nonzero()[:, 0]
        tokens, rows = tokens[parents.to(tokens.device)], rows[parents]
        if not len(rows):
            break
    for i, row in enumerate(rows.tolist()):
        made[row] = Generated(tokens[i, first.shape[1] :].tolist(), float(totals[row]), False)
    return [made[row] for row in range(len(first))]


def beam(scores: Scores, first: Tensor, limits: Limits, beams: int, penalty: float) -> list[Generated]:
    """Return the best sequences that a beam of `beams` sequences a row finds.

    The best one has the largest log-probability over ((5 + length) / 6) ** `penalty` (Wu et al., arXiv
    1609.08144, equation 14), where the end counts as a token. The search of a row ends when no sequence of
    its beam can become better. One that has not ended counts only if none has.
    """
    tokens, rows, parents = first, torch.arange(len(first)), None
    totals = torch.zeros(len(first), 1, dtype=torch.float64)
    best: dict[int, tuple[float, Generated]] = {}
    for place in range(limits.steps):
        logs = _logs(scores(tokens, parents), limits, place).cpu()
        sums = totals[:, :, None] + logs.view(*totals.shape, -1)
        width, vocabulary = sums.shape[1:]
        if limits.end is not None:
            _keep_ended(best, sums[:, :, limits.end], tokens[:, first.shape[1] :], rows, place + 1, penalty)
            sums[:, :, limits.end] = -torch.inf
        going = width * (vocabulary - (limits.end is not None))
        totals, at = sums.flatten(1).topk(min(beams, max(going, 1)))
        bound = totals[:, 0] / length_factor(limits.steps, penalty)
        best_of = torch.tensor([best.get(row, (-torch.inf,))[0] for row in rows.tolist()], dtype=torch.float64)
        open_ = (bound > best_of) & (totals[:, 0] > -torch.inf)
        kept = open_.nonzero()[:, 0]
        parents = (kept[:, None] * width + at[kept] // vocabulary).flatten()
        new = (at[kept] % vocabulary).flatten()[:, None]
        tokens = torch.cat([tokens[parents.to(tokens.device)], new.to(tokens.device)], 1)
        totals, rows = totals[kept], rows[kept]
        if not len(rows):
            break
    found = {row: one for row, (_, one) in best.items()}
    for i, row in enumerate(rows.tolist()):
        if row not in found:
            found[row] = Generated(tokens[i * totals.shape[1], first.shape[1] :].tolist(), float(totals[i, 0]), False)
    return [found[row] for row in range(len(first))]


def _keep_ended(
    best: dict[int, tuple[float, Generated]], ends: Tensor, tokens: Tensor, rows: Tensor, length: int, penalty: float
) -> None:
    """Keep the best sequence of each row that ends here, with log-probabilities `ends` `(m, beams)`, if it is better."""
    values, at = (ends / length_factor(length, penalty)).max(1)
    for i, row in enumerate(rows.tolist()):
        if values[i] > best.get(row, (-torch.inf,))[0]:
            text = tokens[i * ends.shape[1] + int(at[i])].tolist()
            best[row] = float(values[i]), Generated(text, float(ends[i, at[i]]), True)


def length_factor(length: int, penalty: float) -> float:
    """Return what the log-probability of a sequence is divided by."""
    return float(((5 + length) / 6) ** penalty)


def distribution(
    scores: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> Tensor:
    """Return the probabilities `(m, vocabulary)` in float64 by which tokens are drawn.

    Scores are divided by `temperature`. Then the `top_k` most probable tokens remain, and of these the
    fewest most probable ones whose probabilities add up to `top_p` (Holtzman et al., arXiv 1904.09751).
    """
    chances = (scores.double() / temperature).softmax(-1)
    if top_k is None and top_p is None:
        return chances
    values, order = chances.sort(dim=-1, descending=True, stable=True)
    if top_k is not None:
        values[:, top_k:] = 0
        values /= values.sum(-1, keepdim=True)
    if top_p is not None:
        before = values.cumsum(-1) - values
        values[before >= top_p] = 0
    values /= values.sum(-1, keepdim=True)
    return torch.zeros_like(chances).scatter(1, order, values)


def drawn(chances: Tensor, uniform: Tensor) -> Tensor:
    """Return the token of each row at which the sum of `chances` `(m, vocabulary)` exceeds `uniform` `(m,)`."""
    sums = chances.cumsum(-1)
    at = torch.searchsorted(sums, (uniform.double() * sums[:, -1])[:, None], right=True)[:, 0]
    last = chances.shape[1] - 1 - (chances.flip(-1) > 0).int().argmax(-1)
    return at.minimum(last)


def uniform_numbers(keys: Sequence[Sequence[int]], steps: int, seed: int) -> Tensor:
    """Return random numbers in [0, 1), float64 `(n, steps)`. Those of row i depend on `seed` and `keys[i]` only."""
    made = []
    for key in keys:
        digest = hashlib.sha256(f"{seed} {' '.join(map(str, key))}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))
        made.append(torch.rand(steps, generator=generator, dtype=torch.float64))
    return torch.stack(made) if made else torch.empty(0, steps, dtype=torch.float64)


def _logs(scores: Tensor, limits: Limits, place: int) -> Tensor:
    """Return log-probabilities `(m, vocabulary)` in float64, without an end that comes too early."""
    wide = scores.double()
    if limits.end is not None and place < limits.least:
        wide = wide.clone()
        wide[:, limits.end] = -torch.inf
    return wide.log_softmax(-1)

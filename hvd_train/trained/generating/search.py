"""How the tokens of a sequence are chosen, as the options of a command. It imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from hvd_train.errors import UserError


@dataclass(frozen=True)
class Search:
    """Greedy, by a beam if `beams` > 1, or by sampling if `sample`."""

    beams: int = 1
    """Sequences that beam search keeps; 1: the most probable token at each place (greedy)."""
    length_penalty: float = 0.6
    """The power of the length by which beam search divides log-probabilities; 0: it prefers short ones."""
    sample: bool = False
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for option, wrong, expected in (
            ("--beams", self.beams < 1, "at least 1"),
            ("--length-penalty", not 0 <= self.length_penalty < float("inf"), "a number from 0"),
            ("--temperature", not 0 < self.temperature < float("inf"), "a number above 0; greedy is without --sample"),
            ("--top-k", self.top_k is not None and self.top_k < 1, "at least 1"),
            ("--top-p", self.top_p is not None and not 0 < self.top_p <= 1, "a number above 0, at most 1"),
        ):
            if wrong:
                value = getattr(self, option.removeprefix("--").replace("-", "_"))
                raise UserError(f"{option}: {value}, expected {expected}")
        if self.sample and self.beams > 1:
            raise UserError("--beams: beam search and --sample exclude each other; leave one out")
        chosen = (("--temperature", self.temperature != 1), ("--top-k", self.top_k), ("--top-p", self.top_p))
        given = next((option for option, value in chosen if value), None)
        if given and not self.sample:
            raise UserError(f"{given}: it is for sampling; add --sample")


GREEDY = Search()

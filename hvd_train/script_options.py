"""What `ddl run` tells the ranks of a script, in words before the script."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Options:
    """`engine` says what `import horovod` gives the script; without, what Python finds. `output` is the run folder.

    `shown` ranks, or all where that is None, write to the terminal too, and begin each line with their number if `tag`.
    """

    engine: str | None = None
    output: Path | None = None
    shown: tuple[int, ...] | None = None
    tag: bool = False

    def words(self) -> tuple[str, ...]:
        return (
            *([f"--engine={self.engine}"] if self.engine else []),
            *([f"--output={self.output}"] if self.output else []),
            *([f"--tee={','.join(map(str, self.shown))}"] if self.shown is not None else []),
            *(["--tag"] if self.tag else []),
        )


def split(words: Sequence[str]) -> tuple[Options, list[str]]:
    """The options that `words` begin with, and the script with its arguments."""
    count = next(i for i, word in enumerate(words) if not word.startswith("--"))
    told = {name: value for name, _, value in (word[2:].partition("=") for word in words[:count])}
    shown = tuple(int(number) for number in told["tee"].split(",") if number) if "tee" in told else None
    output = Path(told["output"]) if "output" in told else None
    return Options(told.get("engine"), output, shown, "tag" in told), list(words[count:])

"""Options that `ddl run` passes to the ranks of a script, in words before the script."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ScriptOptions:
    """The options of a rank that runs a script.

    `engine` decides what `import horovod` loads; None leaves it to Python. `output` is the run
    folder. The ranks in `shown`, all if it is None, also write to the terminal. With `tag`, they
    put their number before each line.
    """

    engine: str | None = None
    output: Path | None = None
    shown: tuple[int, ...] | None = None
    tag: bool = False

    def words(self) -> tuple[str, ...]:
        """Return the command-line words from which `split` reads the options."""
        return (
            *([f"--engine={self.engine}"] if self.engine else []),
            *([f"--output={self.output}"] if self.output else []),
            *([f"--tee={','.join(map(str, self.shown))}"] if self.shown is not None else []),
            *(["--tag"] if self.tag else []),
        )


def split(words: Sequence[str]) -> tuple[ScriptOptions, list[str]]:
    """Return the options at the beginning of `words`, and the script with its arguments."""
    count = next(i for i, word in enumerate(words) if not word.startswith("--"))
    values = {name: value for name, _, value in (word[2:].partition("=") for word in words[:count])}
    shown = tuple(int(number) for number in values["tee"].split(",") if number) if "tee" in values else None
    output = Path(values["output"]) if "output" in values else None
    return ScriptOptions(values.get("engine"), output, shown, "tag" in values), list(words[count:])

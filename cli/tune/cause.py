"""The cause of the end of a run, from the output of `ddl run`."""

from __future__ import annotations

import re

_ASIDE = re.compile(r"ddl: (see |warning|rank |job \d+: )")
_OF_SLURM = re.compile(r"slurm\w*: |srun: |slurmstepd")


def cause(output: str) -> str | None:
    """Return the last message of ddl in `output` in one line; None if there is none.

    A message that ends with a colon introduces a text of several lines, such as a traceback. Its
    last line is the cause.
    """
    # A launcher may have left its last line without an end; that of Open MPI also prints a NUL.
    lines = list(filter(None, (line.strip(" \0\t") for line in output.splitlines())))
    places = [at for at, line in enumerate(lines) if line.startswith("ddl: ")]
    said = [at for at in places if not _ASIDE.match(lines[at])]
    if not said:
        return None
    end = next((at for at in places if at > said[-1]), len(lines))
    first, *rest = (line for line in lines[said[-1] : end] if not _OF_SLURM.match(line))
    text = first.removeprefix("ddl: ")
    return f"{text} {rest[-1]}" if text.endswith(":") and rest else text

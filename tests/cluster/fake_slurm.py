"""Fake commands of SLURM, which answer in milliseconds and print a greeting as some wrappers do."""

from __future__ import annotations

from pathlib import Path

import pytest

GREETING = "Welcome to the cluster!\nJobId=1 is a good number|for|a|job|of|ours\n\n"
_SHOWN = (
    "JobId={job}{array} JobName=x UserId=me(1) GroupId=me(1) JobState={state} Reason={reason} Dependency=(null) "
    "Restarts={restarts} ExitCode={code} RunTime=00:00:05 TimeLimit=01:00:00 NodeList=n1 NumNodes=1"
)


def shown(job: str, state: str, reason: str = "None", code: str = "0:0", restarts: int = 0) -> str:
    """Return a line of `scontrol --oneliner show job`."""
    return _SHOWN.format(job=job, array="", state=state, reason=reason, code=code, restarts=restarts)


class FakeSlurm:
    """scontrol, sacct, squeue, sbatch and scancel on PATH; `calls` has the calls of the last three."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder.mkdir()
        monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
        self._folder = folder
        self.shows(None)
        self.accounts(None)
        self.queues("")
        self.submits("4711")
        self._program("scancel", f'echo scancel "$@" >> {folder}/calls')

    def shows(self, text: str | None) -> None:
        """Set the output of scontrol; None: it does not know the job."""
        unknown = "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1"
        self._program("scontrol", unknown if text is None else _print(text))

    def accounts(self, text: str | None) -> None:
        """Set the output of sacct; None: there is no accounting."""
        self._program("sacct", "exit 1" if text is None else _print(text))

    def queues(self, text: str, named: str = "") -> None:
        """Set the output of squeue, and its output for a name."""
        call = f'echo squeue "$@" >> {self._folder}/calls'
        self._program("squeue", f"{call}\ncase $5 in --name=*) {_print(named)}\n;; *) {_print(text)}\n;; esac")

    def submits(self, answer: str) -> None:
        """Set the output of sbatch, which also writes its environment."""
        call = f'echo sbatch "$@" >> {self._folder}/calls; env > {self._folder}/environment'
        self._program("sbatch", f'{call}\n[ "$1" = --test-only ] && exit 0\n{_print(answer)}')

    def submits_never(self) -> None:
        """Make sbatch accept --test-only and hang on a submission."""
        self._program("sbatch", '[ "$1" = --test-only ] && exit 0; exec sleep 5')

    def fails(self, program: str, said: str) -> None:
        """Make `program` print `said` on stderr and fail."""
        self._program(program, f"echo '{GREETING}' >&2; echo '{said}' >&2; exit 1")

    @property
    def calls(self) -> list[str]:
        path = self._folder / "calls"
        return path.read_text().splitlines() if path.exists() else []

    @property
    def environment(self) -> dict[str, str]:
        """The environment of sbatch."""
        pairs = (line.partition("=") for line in (self._folder / "environment").read_text().splitlines())
        return {name: value for name, _, value in pairs}

    def _program(self, name: str, script: str) -> None:
        draft = self._folder / f".{name}"
        draft.write_text(f"#!/bin/sh\n{script}\n")
        draft.chmod(0o755)
        draft.rename(self._folder / name)  # another thread may call the program now


def _print(text: str) -> str:
    return f"cat <<'END'\n{GREETING}{text}\nEND"

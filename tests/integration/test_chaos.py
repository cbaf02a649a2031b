"""A short version of `benchmarks/chaos.py`: a launcher and a command are killed, and the runs end as if nothing had happened."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

from benchmarks.chaos import SIGNALS, VICTIMS, plan
from tests.integration.ddl import ROOT
from tests.integration.parts import needs

SEED = 12787


def test_killed_runs_end_with_the_parameters_of_undisturbed_ones_and_leave_nothing(tmp_path: Path) -> None:
    needs("mpirun")
    file = tmp_path / "chaos.json"
    command = [
        sys.executable,
        "-m",
        "benchmarks.chaos",
        "--runs",
        "2",
        "--kills",
        "1",
        "--seed",
        str(SEED),
        "--output",
        str(file),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(file.read_text())
    assert told["good"] == 2
    assert sorted(kill["victim"] for run in told["runs"] for kill in run["kills"]) == ["command", "launcher"]


def test_plans_reach_every_victim_with_every_signal() -> None:
    kills = [kill for number in range(300) for kill in plan(random.Random(f"0/{number}"), 3)]
    assert {(kill.victim, kill.signal) for kill in kills} == {(v, s) for v in VICTIMS for s in SIGNALS}
    assert all((kill.pause is None) == (kill.signal != "STOP") for kill in kills if not kill.victim.startswith("rank"))
    assert {kill.pause is None for kill in kills if kill.signal == "STOP" and kill.victim.startswith("rank")} == {
        True,
        False,
    }
    assert [plan(random.Random("1/2"), 3)] == [plan(random.Random("1/2"), 3)]

"""`ddl bench` as a user types it, on tiny sizes. Figures are only checked against their rounds."""

from __future__ import annotations

import json
import re
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hvd_train.config import plugins
from tests.integration.ddl import ROOT, ddl, ddl_here
from tests.integration.parts import needs


def bench(*arguments: str, cwd: Path, code: int = 0, **environment: str) -> tuple[str, dict[str, Any]]:
    """Run `ddl bench` and return its output and the content of `bench.json`."""
    needs("mpirun")
    done = ddl("bench", *arguments, "--pairs", "2", "--output", "out", cwd=cwd, **environment)
    assert done.returncode == code, done.stderr
    if code:
        assert not (cwd / "out").exists()
        return done.stderr, {}
    assert (cwd / "out" / "bench.png").read_bytes().startswith(b"\x89PNG")
    return done.stdout, json.loads((cwd / "out" / "bench.json").read_text())


def assert_figures(variants: dict[str, Any], floor: str) -> None:
    """Assert that every figure of `variants` follows from its rounds."""
    for variant in variants.values():
        assert len(variant["rounds"]) == 2
        assert min(variant["rounds"]) > 0
        assert variant["iterations"] >= 1
        assert variant["seconds"]["median"] == statistics.median(variant["rounds"])
        ratios = [a / b for a, b in zip(variant["rounds"], variants[floor]["rounds"], strict=True)]
        assert variant["over_floor"]["median"] == statistics.median(ratios)


def test_all_reduces_of_every_variant(tmp_path: Path) -> None:
    needs("horovod")
    printed, found = bench("allreduce", "--sizes", "4K,40K", cwd=tmp_path)
    assert [c["case"] for c in found["runs"][0]["cases"]] == ["4096", "40960"]
    for case in found["runs"][0]["cases"]:
        assert case["unavailable"] == {}
        assert sorted(case["variants"]) == plugins.names("hvd_train.bench.allreduce.implementations")
        assert {case["variants"][v]["bytes_sent"] for v in ("ddl_mpi", "ddl_mpi_arena", "ddl_horovod")} == {
            int(case["case"])
        }
        assert_figures(case["variants"], "memcpy")
    assert {t["figure"].partition(":")[0] for t in found["targets"]} == {"4 KiB in the arena"}
    assert "np=2, 2 of 2: all-reduce of 40960 bytes" in printed
    assert "40 KiB" in printed
    assert "Goals" in printed


def test_steps_of_every_variant(tmp_path: Path) -> None:
    needs("horovod")
    printed, found = bench("step", "--workloads", "small", cwd=tmp_path)
    (run,) = found["runs"]
    assert [c["case"] for c in run["cases"]] == ["small SGD", "small AdamW"]
    for case in run["cases"]:
        assert case["unavailable"] == {}
        assert sorted(case["variants"]) == plugins.names("hvd_train.bench.step.implementations")
        assert case["variants"]["ddl_mpi"]["bytes_sent"] > 0
        assert_figures(case["variants"], "local")
    assert {"processors", "load", "torch", "mpi4py", "mpi"} <= run["machine"].keys()
    assert [r["threads"] for r in run["ranks"]] == [1, 1]
    assert "--np 2" in run["command"]
    assert [t["figure"] for t in found["targets"]][-1] == "Horovod's step over ours, geometric mean of 2"
    assert "geometric mean" in printed


def test_calls_of_both_implementations_of_horovod(tmp_path: Path) -> None:
    needs("horovod")
    printed, found = bench("horovod", cwd=tmp_path)
    (run,) = found["runs"]
    assert [c["case"] for c in run["cases"]] == ["1", "100"]
    for case in run["cases"]:
        assert case["unavailable"] == {}
        assert sorted(case["variants"]) == ["ddl_torch", "horovod"]
        ours, real = (case["variants"][name]["rounds"] for name in ("ddl_torch", "horovod"))
        ratio = statistics.median(a / b for a, b in zip(ours, real, strict=True))
        assert case["variants"]["ddl_torch"]["over_horovod"]["median"] == ratio
    assert [t["figure"] for t in found["targets"]] == [
        "100 named tensors: ours over Horovod's", "one all-reduce of 1 KiB: milliseconds",
    ]  # fmt: skip
    assert "ddl_torch over horovod" in printed
    assert "Goals" in printed


def test_scaling_from_one_rank(tmp_path: Path) -> None:
    printed, found = bench("scaling", "--workloads", "small", "--np", "2", cwd=tmp_path)
    assert [run["world_size"] for run in found["runs"]] == [1, 2]
    assert [line["variant"] for line in found["scaling"]] == ["local", "ddl_mpi", "ddp"]
    for line in found["scaling"]:
        first, second = line["points"]
        assert (first["speedup"], first["efficiency"]) == (1, 1)
        assert second["efficiency"] == pytest.approx(second["samples_per_second"] / first["samples_per_second"] / 2)
    assert "efficiency" in printed


@pytest.fixture
def variant(tmp_path: Path) -> Callable[[str, str], dict[str, str]]:
    """Return a function that adds a file to a family of variants, in a copy of the packages.

    It returns the environment in which `ddl` runs the copy.
    """

    def add(family: str, source: str) -> dict[str, str]:
        for package in ("cli", "hvd_train"):
            shutil.copytree(ROOT / package, tmp_path / "src" / package, ignore=shutil.ignore_patterns("__pycache__"))
        file = tmp_path / "src" / "hvd_train" / "bench" / family / "implementations" / "of_a_test.py"
        file.write_text(source)
        return {"PYTHONPATH": str(tmp_path / "src")}

    return add


README = (ROOT / "benchmarks" / "README.md").read_text()
(EXAMPLE,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)

LOCAL = """\
from hvd_train.bench.step.base import Stepper

def create(world, task):
    return Stepper(task, task.batch(world.rank))
"""

MISSING = "import not_there\n"


def test_the_variant_of_the_readme_is_added_by_one_file(
    variant: Callable[[str, str], dict[str, str]], tmp_path: Path
) -> None:
    copy = variant("allreduce", EXAMPLE)
    _, found = bench("allreduce", "--sizes", "1K", "--variants", "of_a_test,memcpy", cwd=tmp_path, **copy)
    assert sorted(found["runs"][0]["cases"][0]["variants"]) == ["memcpy", "of_a_test"]


def test_an_unavailable_variant_is_listed_and_the_others_run(
    variant: Callable[[str, str], dict[str, str]], tmp_path: Path
) -> None:
    copy = variant("step", MISSING)
    printed, found = bench("step", "--workloads", "small", "--variants", "of_a_test,ddl_mpi", cwd=tmp_path, **copy)
    case = found["runs"][0]["cases"][0]
    assert sorted(case["variants"]) == ["ddl_mpi", "local"]
    assert case["unavailable"] == {"of_a_test": "ModuleNotFoundError: No module named 'not_there'"}
    assert "of_a_test was not measured: ModuleNotFoundError" in printed


SILENT = EXAMPLE.replace("self._mpi.Bcast(x)", "pass")


@pytest.mark.parametrize(
    ("what", "source", "said"),
    [
        (["allreduce", "--sizes", "1K"], SILENT, "all-reduce of 1024 bytes on rank 1: 254 of 256 sums are wrong"),
        (["step", "--workloads", "small"], LOCAL, "small SGD on rank 0: after 3 steps the parameters differ"),
    ],
    ids=["allreduce", "step"],
)
def test_a_wrong_result_fails_the_bench(
    what: list[str], source: str, said: str, variant: Callable[[str, str], dict[str, str]], tmp_path: Path
) -> None:
    copy = variant(what[0], source)
    errors, _ = bench(*what, "--variants", "of_a_test", cwd=tmp_path, code=1, **copy)
    assert f"of_a_test in {said}" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["steps"], "bench: no measurement 'steps'; did you mean 'step'? (choices: allreduce, horovod, scaling, step)"),
        (["step", "--variants", "dpd"], "--variants: no 'dpd'; did you mean 'ddp'?"),
        (["step", "--workloads", "mpl"], "--workloads: no 'mpl'; did you mean 'mlp'?"),
        (["step", "--sizes", "4K"], "--sizes: bench step has --workloads"),
        (["allreduce", "--workloads", "mlp"], "--workloads: bench allreduce has --sizes"),
        (["horovod", "--sizes", "4K"], "bench horovod has neither --sizes nor --workloads"),
        (["allreduce", "--sizes", "5"], "--sizes: '5' is not a size of float32 numbers"),
        (["allreduce", "--np", "0"], "--np: expected at least 1 rank, got 0"),
        (["allreduce", "--output", "there"], "--output: there exists"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_sentence(arguments: list[str], said: str, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    done = ddl_here("bench", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"ddl: {said}")
    assert done.stderr.count("\n") == 1

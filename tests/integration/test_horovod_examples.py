"""Every script of examples/horovod runs unchanged on ddl's API, two of them also on Horovod, and learns."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.integration.ddl import ROOT, ddl
from tests.integration.parts import needs

EXAMPLES = ROOT / "examples" / "horovod"
FILES = sorted(EXAMPLES.glob("*.py"))
ARGUMENTS = {"elastic_state": ["--fail-at", "3"], "synthetic_benchmark": ["--num-iters", "2", "--fp16-allreduce"]}
SAID = {
    "digits": "2 ranks: ",
    "gradient_accumulation": "4 passes a step: ",
    "fp16_compression": "16-bit gradients: ",
    "adasum": "Adasum over 2 ranks: ",
    "elastic_state": "restarted from epochs [3]: ",
}


@pytest.mark.parametrize(
    ("file", "engine"),
    [
        *((file, "mpi") for file in FILES),
        *((file, "horovod") for file in FILES if file.stem in {"adasum", "elastic_state"}),
    ],
    ids=lambda value: getattr(value, "stem", value),
)
def test_example(file: Path, engine: str, tmp_path: Path) -> None:
    needs("mpirun")
    needs(engine)
    done = ddl("run", "--np", "2", "--engine", engine, file, "--", *ARGUMENTS.get(file.stem, []), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    if file.stem == "synthetic_benchmark":
        assert re.search(r"^Total img/sec on 2 CPU\(s\): [\d.]+ \+-[\d.]+$", done.stdout, re.MULTILINE), done.stdout
        return
    (line,) = [line for line in done.stdout.splitlines() if "accuracy" in line]
    assert line.startswith(SAID[file.stem])
    assert float(line.rpartition(" ")[2]) >= 0.93, line

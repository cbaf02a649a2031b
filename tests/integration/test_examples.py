"""Every example runs as it is, and learns; so do the commands of the README, and the strategy of the architecture page."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest
import torch

from hvd_train import plugins
from hvd_train.comm import threads
from tests.bodies import training as body
from tests.integration.ddl import ROOT, ddl, summary
from tests.integration.parts import needs

EXPECTED = {
    "digits_mlp": lambda e: e["accuracy"] >= 0.95,
    "digits_cnn": lambda e: e["accuracy"] >= 0.95,
    "text_transformer": lambda e: e["loss"] < 3.4,  # bytes of this documentation, which changes: 5.5 untrained
    "pipeline_transformer": lambda e: e["loss"] < 3.8,  # as above, in few steps
    "own_model": lambda e: e["loss"] < 0.02,
}
RANKS = {"pipeline_transformer": "4"}


@pytest.mark.parametrize("file", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda f: f.stem)
def test_example(file: Path, tmp_path: Path) -> None:
    needs("mpirun")
    done = ddl("run", "--np", RANKS.get(file.stem, "2"), "--output", tmp_path / "out", file, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert EXPECTED[file.stem](summary(tmp_path / "out")["eval"]), summary(tmp_path / "out")["eval"]


def readme_commands() -> list[str]:
    text = (ROOT / "README.md").read_text()
    return [line.split("  #")[0].strip() for line in text.splitlines() if line.startswith("    ddl ")]


def test_the_commands_of_the_readme_work_in_their_order(tmp_path: Path) -> None:
    """In an empty folder; what is printed as a path of the project is taken from there."""
    needs("mpirun")
    needs("horovod")
    (tmp_path / "hostfiles").symlink_to(ROOT / "hostfiles")
    (tmp_path / "train.py").write_text("import sys\nprint(sys.argv)\n")
    slow = ("ddl run --np 4 model.yaml", "ddl bench", "ddl compare")  # test_bench.py and test_compare.py run them small
    cluster = tuple(f"ddl {c}" for c in ("submit", "status", "stack", "doctor", "hosts", "run --hostfile hosts.txt"))
    elsewhere = (
        "ddl run --hosts",
        "ddl --install-completion",
    )  # test_ssh.py has hosts; the other one changes the user's shell
    commands = [c for c in readme_commands() if not c.startswith(slow + cluster + elsewhere)]
    assert len(commands) >= 8
    for command in commands:
        words = shlex.split(re.sub(r" > .*", "", command))[1:]
        if "--resume" not in words and words[0] == "run" and "model.yaml" in words:
            words += ["train.epochs=1"]
        done = ddl(*words, cwd=tmp_path)
        assert done.returncode == 0, f"{command}: {done.stderr}"


def test_the_strategy_of_the_architecture_page_is_added_by_one_file(monkeypatch: pytest.MonkeyPatch) -> None:
    (source,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "architecture.md").read_text(), re.DOTALL)
    file = ROOT / "hvd_train" / "sync" / "every_other.py"
    file.write_text(source)
    try:
        assert "every_other" in plugins.names("hvd_train.sync")
        config = body.configuration(sync={"strategy": "every_other", "period": 3}, train={"steps": 2, "epochs": None})
        first, second = threads.run(2, lambda comm: body.trained(comm, config))
        assert not torch.equal(first["last.weight"], second["last.weight"]), "the second step was local"
    finally:
        file.unlink()
        sys.modules.pop("hvd_train.sync.every_other", None)

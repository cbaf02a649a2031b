"""The text of batch scripts, and their settings from flags, the YAML file and profiles."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.arguments.configuration import RunFile
from cli.slurm import options, profiles
from cli.slurm.batch import FOLDER, Batch, directive, text
from cli.slurm.schema import SlurmProfile, SlurmSection
from hvd_train.config import document
from hvd_train.config.launch import Launch, to_document
from hvd_train.config.resolve import read_section, resolve_as
from hvd_train.errors import UserError
from hvd_train.rank import internal
from tests.cluster.hosts import wait_until

DDL, PYTHON = Path("/opt/my env/bin/ddl"), Path("/opt/my env/bin/python")
RUN = ("--engine", "mpi", "--output", FOLDER, "--resume", "latest", "/home/me/it's.yaml", "train.epochs=3")


def made(
    array: str | None = None, sweep: tuple[tuple[str, ...], ...] = (), np: int | None = None, **settings: Any
) -> Batch:
    asked = SlurmProfile(**settings)
    return Batch("it's", Path("/runs/a b"), Path("/home/me"), RUN, asked, array, None, sweep, np)


WHOLE = """\
#!/bin/bash
#SBATCH --job-name="it's"
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=a100:4
#SBATCH --mem=64G
#SBATCH --time=1-12
#SBATCH --partition=gpu
#SBATCH --account=physics
#SBATCH --qos=high
#SBATCH --container-image="docker://nvcr.io#pytorch:24.01"
#SBATCH --dependency=afterok:12
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output="/runs/100%% a \\"b\\"/slurm-%j.log"
#SBATCH --exclusive
#SBATCH --mail-type=END

# Written by ddl. You may edit this script and submit it with sbatch; it needs only ddl.
folder='/runs/100% a "b"'
ddl=

# Runs at every end of this script: writes the cause to the run folder, requeues a job that was stopped, and sets
# the exit code of the job.
end() {
  code=$?
  trap '' TERM USR1
  exec '/opt/my env/bin/python' PROGRAM cli.slurm.end "$folder" "$code" ${ddl:+--began} --notice=300 --max-requeues=4
}
trap end EXIT
# SLURM signals this shell before the time limit and on preemption. ddl then saves its state and exits with 75.
# Bash may lose one of two simultaneous signals; both have the same effect.
stop() { ddl=$!; [ "$ddl" ] || exit "$1"; kill -USR1 "$ddl"; }
trap 'stop 138' USR1
trap 'stop 143' TERM
echo "$SLURM_JOB_ID ${SLURM_RESTART_COUNT:-0}" > "$folder"/began

cd -- '/home/me/my models' || exit
module load gcc/12 || exit
module load 'openmpi/5; x' || exit
# A rank of an earlier attempt, on a node that was cut off, may return and end the step with its step number.
# The steps below use up the numbers of the earlier attempts, so that the ranks of this attempt get another.
for ((n = 0; n < ${SLURM_RESTART_COUNT:-0}; n++)); do srun --nodes=1 --ntasks=1 --mpi=none true; done
export OMPI_MCA_btl_tcp_if_include=ib0
export PRTE_MCA_prte_if_include=ib0
export OMPI_MCA_oob_tcp_if_include=ib0
export MPIR_CVAR_NEMESIS_TCP_NETWORK_IFACE=ib0
export FI_TCP_IFACE=ib0
export HYDRA_IFACE=ib0
export I_MPI_HYDRA_IFACE=ib0
export NCCL_SOCKET_IFNAME=ib0
export GLOO_SOCKET_IFNAME=ib0
export HOROVOD_GLOO_IFACE=ib0
export NOTE='a '"'"'b'"'"' $c'

'/opt/my env/bin/ddl' run --engine mpi --output "$folder" --resume latest '/home/me/it'"'"'s.yaml' train.epochs=3 &
ddl=$!
while kill -0 "$ddl" 2>/dev/null; do wait "$ddl"; done
wait "$ddl"
exit
"""


def test_the_whole_script() -> None:
    settings = SlurmProfile(
        nodes=2,
        ntasks_per_node=4,
        cpus_per_task=8,
        gpus_per_node="a100:4",
        mem="64G",
        time="1-12",
        partition="gpu",
        account="physics",
        qos="high",
        container_image="docker://nvcr.io#pytorch:24.01",
        sbatch={"exclusive": None, "mail-type": "END"},
        modules=["gcc/12", "openmpi/5; x"],
        environment={"NOTE": "a 'b' $c"},
        interface="ib0",
        notice=300,
        max_requeues=4,
    )
    folder, home = Path('/runs/100% a "b"'), Path("/home/me/my models")
    job = Batch("it's", folder, home, RUN, settings, dependency="afterok:12")
    assert text(job, DDL, PYTHON) == WHOLE.replace("PROGRAM", shlex.quote(internal.PROGRAM))
    assert job.world_size == 8


def test_a_sweep_is_an_array_of_runs() -> None:
    found = text(made(sweep=(("seed=0", "model={name: mlp}"), ("seed=1", "x=it's"))), DDL, PYTHON)
    assert "#SBATCH --array=0-1\n" in found
    assert '#SBATCH --output="/runs/a b/%a/slurm-%A_%a.log"\n' in found
    assert "folder='/runs/a b'/\"$SLURM_ARRAY_TASK_ID\"\n" in found
    chosen = """\
case $SLURM_ARRAY_TASK_ID in
  0) overrides=(seed=0 'model={name: mlp}') ;;
  1) overrides=(seed=1 'x=it'"'"'s') ;;
esac
"""
    assert chosen in found
    assert 'train.epochs=3 "${overrides[@]}" &\n' in found


def test_tasks_have_the_numbers_that_slurm_gives_them() -> None:
    job = made("01-03,7", sweep=tuple((f"seed={n}",) for n in range(8)))
    assert job.tasks == ("1", "2", "3", "7")
    found = text(job, DDL, PYTHON)
    assert "#SBATCH --array=01-03,7\n" in found
    assert "  1) overrides=(seed=1) ;;\n  2) overrides=(seed=2) ;;\n  3)" in found


@pytest.mark.parametrize(
    ("settings", "ntasks", "size"),
    [
        ({}, "#SBATCH --ntasks=8\n", 8),
        ({"nodes": 2}, "#SBATCH --ntasks=8\n", 8),
        ({"ntasks_per_node": 4}, "#SBATCH --ntasks=8\n", 8),
        ({"nodes": 2, "ntasks_per_node": 4}, "", 8),
    ],
)
def test_a_number_of_ranks(settings: dict[str, int], ntasks: str, size: int) -> None:
    job = made(np=8, **settings)
    found = text(job, DDL, PYTHON)
    assert job.world_size == size
    assert ntasks in found
    assert ("#SBATCH --ntasks=" in found) == bool(ntasks)


def test_a_subnet_goes_to_those_that_know_subnets() -> None:
    found = text(made(interface="10.1.0.0/16"), DDL, PYTHON)
    assert "export OMPI_MCA_btl_tcp_if_include=10.1.0.0/16\n" in found
    assert "NCCL_SOCKET_IFNAME" not in found


def test_a_part_of_a_sweep() -> None:
    job = made("1,3%1", sweep=tuple((f"seed={n}",) for n in range(5)))
    assert job.tasks == ("1", "3")
    found = text(job, DDL, PYTHON)
    assert "#SBATCH --array=1,3%1\n" in found
    assert [line for line in found.splitlines() if "overrides=(" in line] == [
        "  1) overrides=(seed=1) ;;",
        "  3) overrides=(seed=3) ;;",
    ]


@pytest.mark.parametrize(
    ("option", "value", "line"),
    [
        ("nodes", 2, "#SBATCH --nodes=2"),
        ("exclusive", None, "#SBATCH --exclusive"),
        ("time", "1:00:00", "#SBATCH --time=1:00:00"),
        ("comment", 'say "a\\b" # it\'s', '#SBATCH --comment="say \\"a\\\\b\\" # it\'s"'),
    ],
)
def test_directives(option: str, value: str | int | None, line: str) -> None:
    assert directive(option, value) == line


@pytest.mark.parametrize(
    ("job", "words"),
    [
        (made(time=2), "120 s before the end of a job of 120 s; request a longer --time or a shorter --notice"),
        (made(time="0:30", notice=30), "30 s before the end of a job of 30 s"),
        (made(array="a-b"), "'a-b' is not an array; expected task numbers such as 0-9"),
        (made(array="3-1"), "'3-1' has an empty range; expected task numbers"),
        (made(array="0-4:0"), "'0-4:0' has an empty range"),
        (made(array="0-99999999999"), "'0-99999999999' has more than 10,000 tasks"),
        (made(np=0), "--np: expected at least 1 rank, got 0"),
        (
            made(np=3, nodes=2, ntasks_per_node=2),
            "--np 3: 2 nodes with 2 ranks each are 4 ranks; leave out one of the three",
        ),
        (made(np=1, nodes=2), "--np 1: each of the 2 nodes needs a rank"),
        (made(np=3, ntasks_per_node=2), "--np 3: 2 ranks on each node cannot add up to 3; expected a multiple of 2"),
        (made(environment={"WANDB_API_KEY": "x"}), "slurm.environment: WANDB_API_KEY looks like a secret, and job.sh"),
        (made(sbatch={"export": "ALL,A=1,MY_TOKEN=x"}), "MY_TOKEN looks like a secret"),
        *(
            (made(sbatch={word: "x"}), f"--sbatch {word}: ddl submit sets this option itself; ")
            for word in options.INSTEAD
        ),
        (
            made(sbatch={"outp": "x"}),
            "--sbatch outp: ddl submit sets this option itself; sbatch reads it as --output: ",
        ),
        (
            made(array="0-2", sweep=(("seed=0",), ("seed=1",))),
            "the sweep has the combinations 0-1; '0-2' has other numbers",
        ),
    ],
)
def test_what_cannot_be_submitted(job: Batch, words: str) -> None:
    with pytest.raises(UserError) as caught:
        text(job, DDL, PYTHON)
    assert words in str(caught.value)


@pytest.mark.parametrize("word", ["gpus", "exclusive", "constraint", "mem-per-cpu", "export", "reservation", "hint"])
def test_other_options_of_sbatch_go_on(word: str) -> None:
    assert options.refusal(word) is None


SAVES = """\
#!/bin/bash
# Behaves as ddl run: SIGUSR1 makes it save for a while and exit with 75.
printf '%s\\n' "$PWD" "$@" >> "$LOG"
trap 'echo stopped >> "$LOG"; sleep 0.3; exit 75' USR1
echo ready >> "$LOG"
while :; do sleep 0.05; done
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Return a folder with programs that write their calls to `log`: ddl, python and module."""
    home = tmp_path / "my $models; `x`"
    home.mkdir()
    notes = '#!/bin/bash\nprintf "%s\\n" "$@" >> "$LOG"\n'
    for name, script in {
        "ddl": SAVES,
        "python": f'{notes}exit "$4"\n',
        "module": f'{notes}[ "$2" = slow ] && sleep 0.5\n[ "$2" != none ]\n',
    }.items():
        (home / name).write_text(script)
        (home / name).chmod(0o755)
    return home


Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def start(home: Path) -> Iterator[Start]:
    """Return a function that starts the batch script in a real shell, which ends with the test."""
    shells = []

    def start(workdir: Path | None = None, **settings: Any) -> subprocess.Popen[bytes]:
        job = Batch("x", home, workdir or home, RUN, SlurmProfile(**settings))
        (home / "job.sh").write_text(text(job, home / "ddl", home / "python"))
        environment = {"PATH": f"/usr/bin:/bin:{home}", "LOG": str(home / "log"), "SLURM_JOB_ID": "12"}
        shells.append(subprocess.Popen(["bash", home / "job.sh"], env=environment, start_new_session=True))
        return shells[-1]

    yield start
    for shell in shells:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(shell.pid, signal.SIGKILL)
        shell.wait()


def noted(home: Path) -> list[str]:
    return (home / "log").read_text().splitlines() if (home / "log").exists() else []


def end(home: Path, code: int, *began: str) -> list[str]:
    return [internal.PROGRAM, "cli.slurm.end", str(home), str(code), *began, "--notice=120", "--max-requeues=10"]


def test_the_script_in_a_real_shell_tells_ddl_run_of_a_signal_and_passes_its_code_on(home: Path, start: Start) -> None:
    shell = start()
    wait_until(lambda: "ready" in noted(home), "ddl run")
    assert (home / "began").read_text() == "12 0\n"
    shell.send_signal(signal.SIGTERM)
    shell.send_signal(signal.SIGUSR1)
    assert shell.wait(timeout=10) == 75
    told = ["run", "--engine", "mpi", "--output", str(home), "--resume", "latest", *RUN[6:]]
    assert noted(home) == [str(home), *told, "ready", "stopped", *end(home, 75, "--began")]


def test_a_preparation_that_fails_is_noted(home: Path, start: Start) -> None:
    assert start(modules=["none"]).wait(timeout=10) == 1
    assert noted(home) == ["load", "none", *end(home, 1)]
    (home / "log").unlink()
    assert start(home / "gone").wait(timeout=10) == 1
    assert noted(home) == end(home, 1)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGUSR1, 138), (signal.SIGTERM, 143)])
def test_a_signal_before_ddl_run_ends_the_script(number: signal.Signals, code: int, home: Path, start: Start) -> None:
    shell = start(modules=["slow"])
    wait_until(lambda: "slow" in noted(home), "module load")
    shell.send_signal(number)
    assert shell.wait(timeout=10) == code
    assert noted(home) == ["load", "slow", *end(home, code)]


YAML = "model: mlp\ndata: digits\nslurm:\n"


def written(text: str) -> SlurmSection:
    return resolve_as(RunFile, document.parse(YAML + text, "m.yaml")).slurm


def test_flags_come_before_the_file_and_the_file_before_the_profile(tmp_path: Path) -> None:
    (tmp_path / "lab.yaml").write_text(
        "nodes: 1\ntime: 1:00:00\npartition: cpu\nmodules: [a, b]\nenvironment: {A: 1, B: 1, C: 1}\nsbatch: {hint: x}\n"
    )
    section = written("  nodes: 2\n  profile: lab\n  partition: gpu\n  environment: {B: 2, C: 2}\n")
    flags = {"nodes": 3, "environment": {"C": "3"}, "sbatch": {"exclusive": None}}
    found = profiles.settings(flags, section, (tmp_path,))
    assert found.model_dump(exclude_unset=True) == {
        "nodes": 3,
        "time": "1:00:00",
        "partition": "gpu",
        "modules": ["a", "b"],
        "environment": {"A": 1, "B": 2, "C": "3"},
        "sbatch": {"hint": "x", "exclusive": None},
    }


def test_a_profile_of_the_user_hides_the_sites(tmp_path: Path) -> None:
    user, site = tmp_path / "user", tmp_path / "site"
    for folder, nodes in ((user, 1), (site, 2)):
        folder.mkdir()
        (folder / "lab.yaml").write_text(f"nodes: {nodes}\n")
    (site / "other.yaml").write_text("nodes: 3\n")
    assert profiles.load("lab", (user, site), "").nodes == 1
    assert profiles.load("other", (user, site), "").nodes == 3


def test_a_profile_that_is_missing_is_blamed_on_the_line_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "lab.yaml").write_text("nodes: 1\n")
    section, place = written("  profile: labb\n"), "m.yaml:4: slurm.profile"
    with pytest.raises(
        UserError, match=rf"m\.yaml:4: slurm\.profile: no profile 'labb' in {tmp_path}; did you mean 'lab'\?"
    ):
        profiles.settings({}, section, (tmp_path,), place)
    with pytest.raises(UserError, match=r"--profile: no profile 'x' in"):
        profiles.settings({"profile": "x"}, section, (tmp_path,), place)


def test_where_profiles_are() -> None:
    assert profiles.folders({"HOME": "/home/me"}) == (Path("/home/me/.config/ddl/profiles"), Path("/etc/ddl/profiles"))
    assert profiles.folders({"HOME": "/home/me", "XDG_CONFIG_HOME": "/c"})[0] == Path("/c/ddl/profiles")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"nodes": 0}, "--nodes: nodes: expected greater than 0, got 0"),
        ({"ntasks_per_node": -1}, "--ntasks-per-node: ntasks_per_node: expected greater than 0, got -1"),
        ({"time": "soon"}, "--time: time: expected minutes, H:M:S, D-H, or units such as 1h30m and 2d, got 'soon'"),
        ({"sbatch": {"a b": None}}, "--sbatch: sbatch.a b"),
        ({"partition": "a\n#SBATCH --uid=0"}, "--partition: partition: "),
        ({"environment": {"A;B": "1"}}, "--environment: environment.A;B"),
    ],
)
def test_flags_are_checked(flags: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        profiles.settings(flags, SlurmSection(), ())
    assert words in str(caught.value)
    assert "\n" not in str(caught.value).replace(repr("\n")[1:-1], "")


def test_mistakes_in_a_profile_name_its_line(tmp_path: Path) -> None:
    (tmp_path / "lab.yaml").write_text("nodes: 2\npartitoin: x\n")
    with pytest.raises(UserError, match=r"lab\.yaml:2: partitoin: unknown key; did you mean 'partition'\?"):
        profiles.load("lab", (tmp_path,), "--profile")


def test_hours_and_minutes_in_yaml_are_no_number() -> None:
    assert written("  time: 1:30:00\n").time == "1:30:00"
    assert written("  time: 90\n").time == 90
    assert written("  time: 1h30m\n").time == "01:30:00"


def test_ranks_are_not_told_what_was_asked_of_slurm() -> None:
    config = resolve_as(RunFile, document.parse(YAML + "  environment: {TOKEN: secret}\n", "m.yaml"))
    told = to_document(config, Launch(world_size=1, engine="single", output="out"))
    assert "slurm" not in told
    assert "secret" not in told


def test_the_example_profiles_are_profiles() -> None:
    examples = sorted((Path(__file__).parents[2] / "examples" / "profiles").glob("*.yaml"))
    assert examples
    for path in examples:
        assert read_section(SlurmProfile, document.read(path)).partition

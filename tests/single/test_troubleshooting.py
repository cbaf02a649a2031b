"""A test asserts each message of docs/troubleshooting.md."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
MESSAGES = dict(re.findall(r"^\| ([^|]+) \| `([^`|]+)` \|", PAGE, re.MULTILINE))
"""Message by symptom."""

TESTS = {
    "the build stops at once": "integration/test_scripts.py::test_without_a_compiler_it_asks_for_one",
    "the build fails later": "integration/test_scripts.py::test_a_build_that_fails_shows_the_first_error_and_the_log",
    "the MPI library is unknown": "single/test_flavor.py::test_an_unknown_mpi_is_shown_raw",
    "every rank is rank 0 of 1": "integration/test_run.py::test_a_rank_alone_in_its_world_says_so",
    "srun and the MPI library have no PMI in common": (
        "single/test_launchers.py::test_no_plugin_for_a_library_says_the_way_out"
    ),
    "there are more ranks than slots": "single/test_placement.py::test_missing_slots_are_refused_or_spread",
    "ranks share cores, or have too many threads": "single/test_doctor.py::test_cpus",
    "two ranks have one GPU, or none is visible": "single/test_doctor.py::test_gpus",
    "a host is unreachable, or its environment is incomplete": (
        "integration/test_preflight.py::test_problems_are_a_table_and_nothing_starts"
    ),
    "hosts have different versions of a package": "single/test_preflight.py::test_a_difference_is_one_problem",
    "a script or a data file is missing or different on a host": (
        "integration/test_preflight.py::test_another_script_or_no_data_on_a_host"
    ),
    "the login shell of a host is unsuitable for `mpirun`": "integration/test_ssh.py::test_login_shells_of_every_kind",
    "sshd or a bastion drops connections (`MaxStartups`)": (
        "single/test_ssh.py::test_a_busy_sshd_is_asked_again_with_few_connections"
    ),
    "sshd listens on another port": "integration/test_ssh.py::test_another_port_and_user_for_ssh",
    "a variable of this shell is missing on other hosts": (
        "integration/test_ssh.py::test_variables_of_this_shell_reach_every_host"
    ),
    "two hosts have one hostname, and Open MPI waits forever": (
        "integration/test_ssh.py::test_hosts_of_one_hostname_are_not_taken_for_one"
    ),
    "some ranks never start": "single/test_watchdog.py::test_ranks_that_never_start_are_named_after_a_minute_at_least",
    "a bridge (docker0, virbr0) has the same address on every host": (
        "integration/test_preflight.py::test_a_bridge_with_one_address_on_every_host_is_not_used"
    ),
    "a rank does not enter a collective": (
        "integration/test_cluster_failures.py::test_a_rank_for_which_the_others_wait_is_named_with_its_line"
    ),
    "ranks call different collectives, and hang or get wrong data": (
        "integration/test_cluster_failures.py::test_models_that_differ_between_ranks_are_named_by_check_collectives"
    ),
    "a rank, its host or its link stops without an error": (
        "integration/test_cluster_failures.py::test_a_stopped_rank_ends_the_job_in_time_with_the_position_of_all_ranks"
    ),
    "a rank is killed": (
        "integration/test_cluster_failures.py::test_a_killed_rank_is_named_and_the_job_resumes_from_its_checkpoint"
    ),
    "a host is lost together with its MPI daemon": (
        "integration/test_cluster_failures.py::test_a_host_without_its_daemons_ends_the_job"
    ),
    "a link goes down": (
        "integration/test_cluster_failures.py::test_a_host_that_is_cut_off_is_named_and_the_job_restarts_without_it"
    ),
    "the job was stopped by a signal or a time limit": (
        "integration/test_run.py::test_a_signal_ends_the_step_saves_and_exits_with_75"
    ),
    "the newest checkpoint is damaged": (
        "single/test_checkpoint.py::test_a_damaged_newest_one_gives_way_to_the_one_before_with_a_warning"
    ),
    "Open MPI 5 does not know the options of Open MPI 4": "single/test_network.py::test_messages_and_control_take_it",
    "horovodrun probes networks for minutes": "single/test_network.py::test_horovodrun_takes_it_over_gloo_and_mpi",
    "srun of SLURM 22.05 and later ignores `--cpus-per-task` of sbatch": "single/test_launchers.py::test_srun",
}
"""Test by symptom: `folder/file.py::function`."""


def test_every_symptom_of_the_page_has_a_test() -> None:
    assert set(MESSAGES) == set(TESTS)


@pytest.mark.parametrize("symptom", TESTS)
def test_the_test_of_a_symptom_asserts_its_message(symptom: str) -> None:
    file, _, name = TESTS[symptom].partition("::")
    functions = {node.name: node for node in _module(file).body if isinstance(node, ast.FunctionDef)}
    assert name in functions, f"no {name} in tests/{file}"
    assert MESSAGES[symptom] in _words(functions[name]), f"tests/{TESTS[symptom]} asserts no such message"


def _module(file: str) -> ast.Module:
    return ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))


def _words(function: ast.FunctionDef) -> str:
    """Return all string constants of `function`, without the backslashes of regular expressions."""
    constants = (node.value for node in ast.walk(function) if isinstance(node, ast.Constant))
    return "\n".join(c for c in constants if isinstance(c, str)).replace("\\", "")

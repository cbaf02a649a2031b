"""The small pure parts: events, blame, affinity, sampler, losses, names."""

from __future__ import annotations

import itertools
import os
import signal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cli.follow.blame import Death, killed
from hvd_train.errors import nearest
from hvd_train.rank import events
from hvd_train.rank.affinity import threads
from hvd_train.training.sampler import Epoch


def emitted(**fields: object) -> bytes:
    reader, writer = os.pipe()
    events.emit(writer, "failed", **fields)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        return stream.read()


@given(st.lists(st.integers(0, 200), max_size=6), st.text(max_size=10))
def test_events_are_found_however_the_stream_is_cut(cuts: list[int], noise: str) -> None:
    text = noise.replace("\x1e", "").replace("\x1f", "").encode()
    stream = text + emitted(rank=1, message="a\nb") + text + emitted(rank=2, message="}\x1e{") + text
    found, rest, pending = [], b"", b""
    edges = [0, *sorted(min(c, len(stream)) for c in cuts), len(stream)]
    for begin, end in itertools.pairwise(edges):
        new, text_, pending = events.split(pending + stream[begin:end])
        found += new
        rest += text_
    assert [(e["rank"], e["message"]) for e in found] == [(1, "a\nb"), (2, "}\x1e{")]
    assert pending == b""
    assert rest.split() == (text * 3).split()


def test_a_long_event_keeps_the_end_of_its_traceback() -> None:
    line = emitted(rank=1, message="m", traceback="x\n" * 9000 + "ValueError: the end")
    assert len(line) <= events.LIMIT + 100
    assert events.split(line)[0][0]["traceback"].endswith("ValueError: the end")


def test_an_event_inside_another_one_is_found() -> None:
    inner, outer = ({"event": e, "host": "n", "machine": "m", "pid": 1, "time": 0} for e in ("done", "beat"))
    whole = events._encode(outer)
    found, text, rest = events.split(b"a" + whole[:20] + events._encode(inner) + whole[20:] + b"b")
    assert [e["event"] for e in found] == ["done", "beat"]
    assert (text, rest) == (b"ab", b"")


def test_the_first_failure_is_the_earliest_one() -> None:
    log = [{"event": "failed", "time": 2.0, "rank": 0}, {"event": "failed", "time": 1.0, "rank": 3}]
    assert events.first_failure([{"event": "done", "time": 0.0}, *log]) == log[1]
    assert events.first_failure([]) is None


@pytest.mark.parametrize(
    ("text", "death"),
    [
        (
            "prterun noticed that process rank 1 with PID 4242 on node n2 exited on\nsignal 9 (Killed).",
            Death(1, "n2", 9),
        ),
        (
            "mpirun noticed that process rank 3 with PID 0 on node n1 exited on signal 11 (Segmentation fault).",
            Death(3, "n1", 11),
        ),
        (
            "=   BAD TERMINATION OF ONE OF YOUR APPLICATION PROCESSES\n=   PID 77 RUNNING AT n4\n=   EXIT CODE: 9\n"
            "YOUR APPLICATION TERMINATED WITH THE EXIT STRING: Killed (signal 9)",
            Death(2, "n4", 9),
        ),
        ("=   RANK 1 PID 77 RUNNING AT n4\n=   KILLED BY SIGNAL: 6 (Aborted)\n", Death(2, "n4", 6)),
        ("srun: error: n7: task 5: Segmentation fault (core dumped)", Death(5, "n7", 11)),
        ("Process 1 exit with status code 137.", Death(1, "here", 9)),
        ("Process 1 exit with status code 1.", Death(1, "", 0, 1)),
        ("Process name: [prterun-vm-17579@1,1]\n   Exit code:    3\n", Death(1, "", 0, 3)),
        ("Process name: [[54321,1],2]\n  Exit code:    3\n", Death(2, "", 0, 3)),
        ("srun: error: n1: task 0: Terminated\nsrun: error: n2: task 1: Exited with exit code 3", Death(1, "n2", 0, 3)),
        ("srun: error: n1: tasks 0-1: Exited with exit code 1", Death(0, "n1", 0, 1)),
        ("srun: error: n1: task 0: Terminated", Death(0, "n1", 15)),
        ("Process 1 exit with status code 0.", None),
        ("nothing of note", None),
    ],
)
def test_launchers_name_the_rank_that_a_signal_ended(text: str, death: Death | None) -> None:
    assert killed(text, {77: 2}, "here") == death


def test_a_death_is_told_with_the_name_of_the_signal() -> None:
    assert str(Death(1, "n2", signal.SIGSEGV)).startswith("rank 1 on n2 was killed by signal 11 (SIGSEGV)")


@pytest.mark.parametrize(
    ("processors", "machine", "local_size", "expected"),
    [(2, 2, 1, 2), (2, 2, 2, 1), (1, 2, 2, 1), (2, 2, 4, 1), (16, 64, 4, 16), (64, 64, 4, 16), (4, 64, 1, 4)],
)
def test_threads_of_a_rank(processors: int, machine: int, local_size: int, expected: int) -> None:
    assert threads(processors, machine, local_size) == expected


def test_an_epoch_whose_ranks_have_unequal_shares() -> None:
    epoch = Epoch(torch.arange(5), (5, 7, 0), batch_size=2, accumulate=2)
    assert epoch.steps == 2
    assert [epoch.samples(s) for s in range(3)] == [8, 4, 0]
    assert [[b.tolist() for b in epoch.micro_batches(s)] for s in range(3)] == [[[0, 1], [2, 3]], [[4]], []]


def test_the_nearest_choice_is_named() -> None:
    assert nearest("mlpp", ["mlp", "cnn"]) == "; did you mean 'mlp'? (choices: cnn, mlp)"
    assert nearest("zzz", ["mlp"]) == " (choices: mlp)"

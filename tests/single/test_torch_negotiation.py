"""The negotiation without ranks: messages in, responses out."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvd_train.torch.negotiation import Negotiation
from hvd_train.torch.requests import OPS, Request, Response, Spec, fusion

SUM, MIN = OPS.index("Sum"), OPS.index("Min")


def tensor(name: str, *shape: int, kind: str = "allreduce", dtype: str = "float32", **more: object) -> Request:
    return Request(Spec(kind, name, dtypes=(dtype,), shapes=(shape,), **{"op": SUM, **more}))  # type: ignore[arg-type]


class World:
    """The state machines of all ranks.

    `say` runs one round and asserts that all ranks compute the same responses.
    """

    def __init__(self, size: int, **options: int) -> None:
        self.ranks = [Negotiation(size, **options) for _ in range(size)]
        self.sent: list[bytes] = []

    def say(self, *requests: Sequence[Request]) -> list[Response]:
        self.sent = [rank.encode(made) for rank, made in zip(self.ranks, requests, strict=True)]
        first, *others = [rank.advance(self.sent) for rank in self.ranks]
        assert all(other == first for other in others)
        return first


def names(responses: list[Response]) -> list[list[str]]:
    return [[request.spec.name for request in response.requests] for response in responses]


def test_a_request_is_answered_once_when_all_ranks_have_made_it() -> None:
    world, a = World(3), tensor("a", 2)
    assert world.say([a], [], [a]) == []
    assert world.ranks[1].waiting() == [(a.key, [1])]
    assert world.say([], [a], []) == [Response("allreduce", [a])]
    assert world.ranks[0].waiting() == []
    assert world.say([], [], []) == []


def test_what_is_ready_is_fused_in_the_order_of_becoming_ready() -> None:
    world = World(2)
    a, b, c = (tensor(n, 4) for n in "abc")
    assert names(world.say([a, b, c], [c, a])) == [["c", "a"]]
    assert names(world.say([], [b])) == [["b"]]


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [(0, [["a"], ["b"], ["c"]]), (16, [["a"], ["b"], ["c"]]), (32, [["a", "b"], ["c"]]), (48, [["a", "b", "c"]])],
)
def test_fusion_stays_below_the_threshold(threshold: int, expected: list[list[str]]) -> None:
    made = [tensor(n, 4) for n in "abc"]
    assert names(World(2, threshold=threshold).say(made, made)) == expected


@pytest.mark.parametrize(
    "other",
    [
        tensor("b", 4, dtype="float64"), tensor("b", 4, op=MIN), tensor("b", 4, prescale=2.0), tensor("b", 4, postscale=2.0),
        tensor("b", 4, device="cuda"), tensor("b", 4, kind="broadcast"), tensor("b", 4, kind="reducescatter"),
    ],
)  # fmt: skip
def test_only_reductions_of_one_sort_are_fused(other: Request) -> None:
    made = [tensor("a", 4), other, tensor("c", 4)]
    assert sorted(names(World(2).say(made, made))) == [["a", "c"], ["b"]]


def test_a_known_request_is_a_small_number() -> None:
    world, a = World(2), tensor("a" * 1000, 2)
    world.say([a], [a])
    assert len(world.sent[0]) > 1000
    for _ in range(3):
        assert world.say([a], [a]) == [Response("allreduce", [a])]
        assert len(world.sent[0]) == 12


def test_what_all_ranks_asked_for_together_is_answered_as_before_whatever_the_order() -> None:
    world, (a, b, c) = World(2, capacity=3), (tensor(n, 4) for n in "abc")
    world.say([a, b], [b, a])
    assert names(world.say([a, b], [b, a])) == [["b", "a"]]
    assert names(world.say([a, b], [a, b])) == [["b", "a"]]
    assert names(world.say([a, c], [a, c])) == [["a", "c"]]
    assert world.say([a], [b]) == []
    assert names(world.say([b], [a])) == [["b", "a"]]


def test_an_answer_is_forgotten_with_the_slot_it_was_for() -> None:
    world, (a, b, c) = World(2, capacity=2), (tensor(n, 4) for n in "abc")
    for made in ([a, b], [a, b], [c, b], [c, b], [a, b], [a, c]):
        assert sorted(names(world.say(made, made[::-1]))[0]) == sorted(r.spec.name for r in made)


def test_what_others_have_joined_or_wait_for_is_not_answered_from_memory() -> None:
    world, (a, b) = World(2), (tensor(n, 4) for n in "ab")
    for _ in range(2):
        assert names(world.say([a], [a])) == [["a"]]
    assert world.say([b], []) == []
    assert names(world.say([a], [a])) == [["a"]]
    assert names(world.say([], [b])) == [["b"]]


def test_requests_without_a_name_are_known_by_their_number() -> None:
    world, spec = World(2), tensor("", 2).spec
    world.say([Request(spec, 0)], [Request(spec, 0)])
    assert world.say([Request(spec, 1), Request(spec, 2)], [Request(spec, 2)]) == [
        Response("allreduce", [Request(spec, 2)])
    ]
    assert len(world.sent[0]) == 20
    assert str(Request(spec, 1).key) == "allreduce.noname.1"


@pytest.mark.parametrize("capacity", [0, 1, 2, 3])
def test_what_was_used_longest_ago_is_forgotten_first(capacity: int) -> None:
    world = World(2, capacity=capacity)
    made = {n: [tensor(n, 2)] for n in "abcd"}
    for name in "abcadabcd":
        assert names(world.say(made[name], made[name])) == [[name]]
    world.say([], [])
    known = [n for n in "abcd" if len(world.ranks[0].encode(made[n])) == 12]
    assert known == list("abcd")[4 - capacity :]


def test_to_be_used_again_is_to_be_remembered() -> None:
    world = World(2, capacity=2)
    for name in "abac":
        world.say([tensor(name, 2)], [tensor(name, 2)])
    assert [n for n in "abc" if len(world.ranks[0].encode([tensor(n, 2)])) == 12] == ["a", "c"]


MISMATCHES = [
    (tensor("x", 2), tensor("x", 3), "mismatched tensor shapes: rank 0 has [2], rank 1 has [3]"),
    (tensor("x", 2), tensor("x", 2, 1), "mismatched tensor shapes: rank 0 has [2], rank 1 has [2, 1]"),
    (tensor("x", 2), tensor("x", 2, dtype="int32"), "mismatched data types: rank 0 has float32, rank 1 has int32"),
    (tensor("x", 2), tensor("x", 2, op=MIN), "mismatched reduction operations: rank 0 has Sum, rank 1 has Min"),
    (tensor("x", 2), tensor("x", 2, prescale=2.0), "mismatched prescale factors: rank 0 has 1.0, rank 1 has 2.0"),
    (tensor("x", 2), tensor("x", 2, postscale=0.5), "mismatched postscale factors: rank 0 has 1.0, rank 1 has 0.5"),
    (tensor("x", 2), tensor("x", 2, device="cuda"), "mismatched devices: rank 0 has cpu, rank 1 has cuda"),
    (tensor("x", -1, 2), tensor("x", -1, 3), "mismatched tensor shapes: rank 0 has [*, 2], rank 1 has [*, 3]"),
    (
        tensor("x", 2, kind="broadcast"),
        tensor("x", 2, kind="broadcast", root=1),
        "mismatched root ranks: rank 0 has 0, rank 1 has 1",
    ),
]


@pytest.mark.parametrize(("one", "other", "said"), MISMATCHES, ids=[m[2].partition(":")[0][11:] for m in MISMATCHES])
@pytest.mark.parametrize("known", [False, True], ids=["new", "known"])
@pytest.mark.parametrize("first", [0, 1], ids=["rank 0 first", "rank 1 first"])
def test_a_mismatch_is_the_same_error_in_any_order(
    one: Request, other: Request, said: str, known: bool, first: int
) -> None:
    world = World(3)
    if known:
        world.say([one], [one], [one])
    if first == 0:
        assert world.say([one], [], []) == []
        (response,) = world.say([], [other], [one])
    else:
        assert world.say([], [other], [one]) == []
        (response,) = world.say([one], [], [])
    assert response.error == f"{one.key}: {said}"
    assert names(world.say([one], [one], [one])) == [["x"]]


def test_groups_of_other_numbers_of_tensors_do_not_match() -> None:
    pair = Request(Spec("allreduce", "g", dtypes=("float32",) * 2, shapes=((1,), (1,)), op=SUM))
    single = Request(Spec("allreduce", "g", dtypes=("float32",), shapes=((1,),), op=SUM))
    (response,) = World(2).say([pair], [single])
    assert response.error == "allreduce.g: mismatched numbers of tensors: rank 0 has 2, rank 1 has 1"


@pytest.mark.parametrize("kind", ["allgather", "alltoall", "reducescatter"])
def test_scalars_have_no_rows(kind: str) -> None:
    scalar = tensor("x", kind=kind)
    (response,) = World(2).say([scalar], [scalar])
    assert response.error == f"{kind}.x: {kind} needs a tensor of at least one dimension"


def test_different_operations_of_one_name_are_refused_once_it_was_asked_for() -> None:
    world, reduce, gather = World(3), tensor("x", 2), tensor("x", -1, kind="allgather")
    assert world.say([reduce], [gather], []) == []
    assert world.ranks[0].conflicts() == []
    assert world.say([], [], [reduce]) == []
    (refuse,) = world.ranks[0].conflicts()
    responses = world.say([Request(refuse)], [], [])
    said = "x: mismatched operations: allreduce on rank 0, 2; allgather on rank 1"
    assert [(r.kind, r.error) for r in responses] == [("allreduce", said), ("allgather", said)]
    assert world.ranks[0].waiting() == []


def test_different_operations_of_one_name_in_opposite_orders_are_no_conflict() -> None:
    world, reduce, gather = World(2), tensor("x", 2), tensor("x", -1, kind="allgather")
    world.say([reduce], [gather])
    (refuse,) = world.ranks[0].conflicts()
    assert [r.error for r in world.say([Request(refuse), gather], [reduce])] == ["", ""]
    assert world.ranks[0].waiting() == []


def test_who_has_joined_takes_part_in_reductions_only() -> None:
    world = World(2)
    a, b, join = tensor("a", 2), tensor("b", 2, kind="broadcast"), Request(Spec("join"))
    assert world.say([a], [join]) == [Response("allreduce", [a])]
    (response,) = world.say([b], [])
    assert response.error == "broadcast.b: rank 1 has joined, and join() allows no broadcast after it; use allreduce"
    assert world.say([join], []) == [Response("join", [Request(Spec("join"))], value=0)]
    assert world.say([a], []) == []


def test_what_was_announced_before_a_join_becomes_ready_by_it() -> None:
    world, a, join = World(3), tensor("a", 2), Request(Spec("join"))
    assert world.say([a], [join], []) == []
    assert world.say([], [], [join]) == [Response("allreduce", [a])]
    assert world.say([join], [], [])[0].value == 0


def test_process_sets_are_added_by_all_and_answer_by_themselves() -> None:
    world, add = World(3), Request(Spec("add", shapes=((0, 2),)))
    assert world.say([add], [add], []) == []
    assert [r.value for r in world.say([], [], [add])] == [1]
    among = tensor("a", 2, process_set=1)
    assert world.say([among], [], [among]) == [Response("allreduce", [among])]
    again = Request(add.spec, 1)
    assert "duplicate" in world.say([again], [again], [again])[0].error
    other = [Request(Spec("add", shapes=((r,),)), 2) for r in range(3)]
    assert world.say(*[[o] for o in other])[0].error == "add.noname.2: mismatched ranks: rank 0 has [0], rank 1 has [1]"


def test_a_removed_process_set_takes_its_requests_along() -> None:
    world = World(3)
    add, remove = Request(Spec("add", shapes=((0, 1),))), Request(Spec("remove", root=1))
    world.say([add], [add], [add])
    early, late = (tensor(n, 2, process_set=1) for n in ("early", "late"))
    assert names(world.say([early, remove], [remove], [remove])) == [["", "early"]]
    (response,) = world.say([], [late], [])
    assert response.error == "allreduce.late: its process set was removed"
    assert world.ranks[0].waiting() == []
    assert world.say([add], [add], [add])[0].value == 2


def test_shutdown_comes_after_what_is_ready() -> None:
    world, a = World(2), tensor("a", 2)
    responses = world.say([a, Request(Spec("shutdown"))], [a])
    assert [(r.kind, r.error) for r in responses] == [("allreduce", ""), ("shutdown", "rank 0 has shut down")]
    join = Request(Spec("join"))
    assert [r.kind for r in world.say([join, Request(Spec("shutdown"))], [join])] == ["join", "shutdown"]
    reason = Request(Spec("shutdown", "stalled"))
    assert world.say([reason], [])[0].error == "stalled"


@settings(max_examples=150, deadline=None)
@given(
    size=st.integers(1, 4),
    count=st.integers(0, 12),
    capacity=st.integers(0, 8),
    threshold=st.integers(0, 64),
    seed=st.integers(0, 2**32),
    data=st.data(),
)
def test_any_order_on_any_rank_ends_with_every_tensor_once(
    size: int, count: int, capacity: int, threshold: int, seed: int, data: st.DataObject
) -> None:
    """Ranks issue the same requests in random orders and portions.

    Some requests have another shape on some ranks. At the end all ranks join.
    """
    draw = random.Random(seed)
    wrong = data.draw(st.sets(st.integers(0, 11))) if size > 1 else set()
    world = World(size, capacity=capacity, threshold=threshold)
    for _ in range(3):
        queues = [[_nth(i, wrong=i in wrong and rank == 0) for i in range(count)] for rank in range(size)]
        for queue in queues:
            draw.shuffle(queue)
        responses: list[Response] = []
        while any(queues):
            parts = [draw.randint(0, len(queue)) for queue in queues]
            responses += world.say(*[queue[:n] for queue, n in zip(queues, parts, strict=True)])
            queues = [queue[n:] for queue, n in zip(queues, parts, strict=True)]
        answered = [r.key.name for response in responses for r in response.requests]
        assert sorted(answered) == sorted(str(i) for i in range(count))
        failed = {r.key.name for response in responses if response.error for r in response.requests}
        assert failed == {str(i) for i in wrong if i < count}
        for response in responses:
            assert len(response.requests) == 1 or sum(fusion(r.spec)[1] for r in response.requests) <= threshold


@settings(max_examples=150, deadline=None)
@given(size=st.integers(1, 4), counts=st.lists(st.integers(0, 6), min_size=4, max_size=4), seed=st.integers(0, 2**32))
def test_uneven_work_ends_with_join(size: int, counts: list[int], seed: int) -> None:
    """Rank r makes `counts[r]` requests in order and joins.

    All requests are answered, and then the join, with the last rank.
    """
    draw, world = random.Random(seed), World(size)
    queues = [[*(_nth(i) for i in range(n)), Request(Spec("join"))] for n in counts[:size]]
    responses: list[Response] = []
    joined: list[int] = []
    while any(queues):
        parts = [draw.randint(0, len(queue)) for queue in queues]
        joined += [r for r, (queue, n) in enumerate(zip(queues, parts, strict=True)) if queue and n == len(queue)]
        responses += world.say(*[queue[:n] for queue, n in zip(queues, parts, strict=True)])
        queues = [queue[n:] for queue, n in zip(queues, parts, strict=True)]
    *reductions, last = responses
    assert (last.kind, last.value) == ("join", joined[-1])
    answered = [r.key.name for response in reductions for r in response.requests]
    assert sorted(answered) == sorted(str(i) for i in range(max(counts[:size])))
    assert not any(response.error for response in reductions)


def _nth(i: int, *, wrong: bool = False) -> Request:
    return tensor(str(i), 1 + i % 3 + 10 * wrong, dtype=("float32", "float64", "int32")[i % 3])

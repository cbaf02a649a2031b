"""Mailboxes of threads; `tests/parallel/test_mailbox.py` runs the same bodies under mpirun."""

from __future__ import annotations

import json
import secrets
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import Any

import psutil
import pytest
import torch

from hvd_train.comm import _addresses, _connect, _emulated, _mailbox, threads
from hvd_train.comm._mailbox import Mailbox, Malformed
from hvd_train.comm.base import Communicator
from hvd_train.comm.single import SingleCommunicator
from hvd_train.errors import UserError
from tests.bodies import mailbox as body


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("check", body.BODIES, ids=lambda f: f.__name__)
def test_bodies_on_threads(check: Any, size: int) -> None:
    threads.run(size, check)


def test_nothing_is_left_of_a_closed_mailbox() -> None:
    before = threading.active_count()
    SingleCommunicator().mailbox().close()
    assert threading.active_count() == before


def test_an_idle_mailbox_takes_no_time() -> None:
    def idle(comm: Communicator) -> float:
        mail = comm.mailbox()
        comm.barrier()
        before = time.process_time()
        assert mail.receive(1.0) is None
        used = time.process_time() - before
        comm.barrier()
        mail.close()
        return used

    assert max(threads.run(2, idle)) < 0.1


@pytest.fixture
def listens(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[tuple[str, int]], None]], None]:
    """Have a function be called with the address of each rank that listens, before any other rank calls it."""
    real = socket.create_server

    def watch(seen: Callable[[tuple[str, int]], None]) -> None:
        def create_server(address: tuple[str, int], **options: Any) -> socket.socket:
            server = real(address, **options)
            seen(server.getsockname())
            return server

        monkeypatch.setattr(socket, "create_server", create_server)

    return watch


def test_ranks_of_one_host_listen_on_loopback_only(listens: Any) -> None:
    seen: list[tuple[str, int]] = []
    listens(seen.append)
    threads.run(3, body.tensors_arrive_as_they_were)
    assert [host for host, _ in seen] == ["127.0.0.1"] * 3


def hello(rank: int) -> bytes:
    """As long as a rank's first words, and with a proof that is none."""
    return _connect._CALL.pack(rank, bytes(16), bytes(32))


STRANGERS = {
    "silent": [b""],
    "of one byte": [b"\0"],
    "with nonsense": [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 4],
    "that says it is rank 1": [hello(1)],
    "that says it is another rank": [hello(0), hello(2), hello(2**32 - 1)],
    "that announces gigabytes": [b"\xff" * 64],
    "in numbers": [b""] * 20 + [hello(1)] * 20,
    "in more numbers than are kept": [b""] * 60,
}


@pytest.mark.parametrize("words", STRANGERS.values(), ids=STRANGERS)
def test_strangers_neither_delay_nor_replace_a_rank(
    words: list[bytes], listens: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are there before any rank calls, and stay; a silent one would once have taken five seconds."""
    monkeypatch.setattr(_connect, "_STRANGERS", 48)
    left: list[socket.socket] = []

    def visit(address: tuple[str, int]) -> None:
        for word in words:
            stranger = socket.create_connection(address)
            left.append(stranger)
            stranger.sendall(word)

    listens(visit)
    began = time.monotonic()
    threads.run(3, body.tensors_arrive_as_they_were)
    assert time.monotonic() - began < 15
    for stranger in left:
        stranger.settimeout(10)
        try:
            told = stranger.recv(1 << 16)
            assert len(told) <= 16, "a stranger is told more than a challenge"
            assert not told or stranger.recv(1 << 16) == b""
        except ConnectionError:
            pass
        stranger.close()


def test_a_rank_that_does_not_come_is_named_on_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_connect, "_SECONDS", 1.0)
    real = _connect._Meeting.call
    monkeypatch.setattr(_connect._Meeting, "call", lambda self: None if self._me == 2 else real(self))

    def refused(comm: Communicator) -> str:
        with pytest.raises(UserError) as error:
            comm.mailbox()
        return str(error.value)

    texts = threads.run(3, refused)
    assert len(set(texts)) == 1
    assert texts[0].startswith(f"rank 2 on {socket.gethostname()} did not connect to rank 0 on")


@pytest.mark.parametrize("answer", [b"", b"x" * 16, b"x" * 47, b"x" * 48, b"x" * 4096])
def test_a_program_that_answers_in_a_ranks_place_is_not_taken_for_it(
    answer: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the address that was announced. Of the token it hears nothing but a proof for its own challenge."""
    monkeypatch.setattr(_connect, "_SECONDS", 0.6)
    heard: list[bytes] = []

    def answering(listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
                connection.sendall(answer)
                heard.append(connection.recv(4096) if len(answer) >= 16 else b"")
                connection.close()
            except OSError:
                return

    token = secrets.token_bytes(32)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        threading.Thread(target=answering, args=(listener,), daemon=True).start()
        places = [{"host": "n0", "at": "127.0.0.1", "port": port}, {"host": "n1", "at": "127.0.0.1", "port": 1}]
        met = _connect._Meeting(1, places, token, time.monotonic() + 0.6)
        with pytest.raises(
            UserError, match=rf"rank 1 on n1 .* does not reach rank 0 on n0 \(127.0.0.1, TCP port {port}\)"
        ):
            met.call()
        listener.shutdown(socket.SHUT_RDWR)
    assert not met.connections
    assert len(heard) > 1, "it calls again"
    for said in filter(None, heard):
        caller, _, proof = _connect._CALL.unpack(said)
        assert (caller, proof) == (1, _connect._proof(token, b"call", answer[:16], 1, 0))


def test_a_rank_is_taken_once_and_only_where_it_is_expected() -> None:
    """Rank 1 of 4 listens for 2 and 3; who knows the token calls as 0, as 1, as 4, and as 2 again."""
    token, deadline = secrets.token_bytes(32), time.monotonic() + 30
    with socket.create_server(("127.0.0.1", 0)) as listener:
        places = [{"host": "here", "at": "127.0.0.1", "port": listener.getsockname()[1]}] * 4
        met = _connect._Meeting(1, places, token, deadline)
        met.connections[0] = socket.socket()
        waiting = threading.Thread(target=met.accept, args=(listener,))
        waiting.start()
        made = [_connect._Meeting(2, places, token, deadline)._introduced(1)]
        for rank in (0, 1, 4, 2):
            with pytest.raises(ConnectionError):
                _connect._Meeting(rank, places, token, deadline)._introduced(1)
        made.append(_connect._Meeting(3, places, token, deadline)._introduced(1))
        waiting.join(30)
    assert sorted(met.connections) == [0, 2, 3]
    for connection in [*made, *met.connections.values()]:
        connection.close()


def test_a_proof_holds_for_one_challenge_one_direction_and_two_ranks() -> None:
    """So that no recorded one is of use to anybody else, or to the same one again."""
    token = secrets.token_bytes(32)
    proof = _connect._proof(token, b"call", b"a" * 16, 2, 1)
    others = [
        (token, b"answer", b"a" * 16, 2, 1),
        (token, b"call", b"b" * 16, 2, 1),
        (token, b"call", b"a" * 16, 1, 2),
        (token, b"call", b"a" * 16, 2, 0),
        (secrets.token_bytes(32), b"call", b"a" * 16, 2, 1),
    ]
    assert len({proof, *(_connect._proof(*other) for other in others)}) == 6


def message(kind: Any = "x", values: Any = None, shapes: Any = None, tensors: bytes = b"") -> bytes:
    text = json.dumps([kind, {} if values is None else values, [] if shapes is None else shapes]).encode()
    padding = bytes(-len(text) % 8)
    return struct.pack("!II", len(text), -(-len(tensors) // 8)) + text + padding + tensors


NO_MESSAGE = {
    "no JSON": struct.pack("!II", 8, 0) + b"{{{{{{{{",
    "no text": struct.pack("!II", 0, 0),
    "no UTF-8": struct.pack("!II", 8, 0) + b"\xff" * 8,
    "nested without end": struct.pack("!II", 80_000, 0) + b"[" * 80_000,
    "a text of gigabytes": b"\xff" * 8,
    "another shape": struct.pack("!II", 8, 0) + b'"a text"',
    "too few parts": struct.pack("!II", 8, 0) + b"[1, 2]  ",
    "a kind that is no text": message(kind=7),
    "values that are no names": message(values=[1]),
    "an unknown dtype": message(shapes=[["float33", [1]]], tensors=bytes(8)),
    "a dtype that is none": message(shapes=[["__doc__", [1]]], tensors=bytes(8)),
    "a dtype that is no text": message(shapes=[[[], [1]]], tensors=bytes(8)),
    "a negative shape": message(shapes=[["float32", [-1]]]),
    "a shape that is no number": message(shapes=[["float32", ["2"]]], tensors=bytes(8)),
    "a shape that is none": message(shapes=[["float32", 2]], tensors=bytes(8)),
    "more than was sent": message(shapes=[["float64", [2**40]]], tensors=bytes(8)),
    "more than any memory": message(shapes=[["float64", [2**40, 2**40]]], tensors=bytes(8)),
    "less than was sent": message(shapes=[["float64", [1]]], tensors=bytes(16)),
}


@pytest.mark.parametrize("wrap", [None, _emulated.emulated], ids=["plain", "emulated"])
@pytest.mark.parametrize("data", NO_MESSAGE.values(), ids=NO_MESSAGE)
def test_bytes_that_are_no_message_end_every_wait_with_an_error(data: bytes, wrap: Any) -> None:
    """Of `receive`, also one that waits already and each one after it, and of `send`; the sender is named."""

    def body(comm: Communicator) -> None:
        mail = (wrap(comm) if wrap else comm).mailbox()
        if comm.rank == 1:
            inner: Mailbox = mail._inner if wrap else mail
            inner._peers[0].connection.sendall(data)
            comm.barrier()
            mail.hang_up()
            return
        for _ in range(2):
            with pytest.raises(
                ConnectionError, match=r"the mailbox of rank 0 has failed: rank 1 sent what is no message"
            ):
                mail.receive(20)
        with pytest.raises(ConnectionError, match="the mailbox of rank 0 has failed"):
            mail.send(1, "x")
        with pytest.raises(ConnectionError, match="the mailbox of rank 0 has failed"):
            mail.send(0, "x")
        comm.barrier()
        (mail._inner if wrap else mail).close()

    before = threading.active_count()
    threads.run(2, body)
    assert threading.active_count() <= before


def test_what_else_goes_wrong_in_the_thread_of_a_mailbox_is_told_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def body(comm: Communicator) -> None:
        mail = comm.mailbox()
        if comm.rank == 0:
            monkeypatch.setattr(mail, "_read", lambda peer: 1 / 0)
        comm.barrier()
        if comm.rank == 1:
            mail.send(0, "x")
        else:
            with pytest.raises(ConnectionError, match="the mailbox of rank 0 has failed: division by zero"):
                mail.receive()
        comm.barrier()
        mail.hang_up()

    threads.run(2, body)


def test_memory_grows_with_what_comes_and_not_with_what_is_announced() -> None:
    """Of 32 GiB announced, 8 MiB come: neither is so much taken as announced, nor is it taken for an end."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    reader = _mailbox._Reader(1)
    before = psutil.Process().memory_info().rss
    ours.sendall(struct.pack("!II", 16, 2**32 - 1))
    assert reader.read(theirs) == ([], False)
    assert len(reader._buffer) <= _mailbox._CHUNK
    for _ in range(128):
        ours.sendall(bytes(1 << 16))
        assert reader.read(theirs) == ([], False)
    assert len(reader._buffer) <= 16 << 20
    assert psutil.Process().memory_info().rss - before < 64 << 20
    ours.close()
    assert reader.read(theirs) == ([], True)
    theirs.close()


@pytest.mark.parametrize("nbytes", [0, 1, 8, (1 << 20) - 8, 1 << 20, (1 << 20) + 8, (3 << 20) + 5])
def test_messages_of_every_length_are_read_whole(nbytes: int) -> None:
    """Around the size up to which memory is taken at once; two in a row."""
    x = torch.arange(nbytes, dtype=torch.int64).to(torch.uint8)
    data = b"".join(_mailbox._encoded("x", {"n": nbytes}, (x,))) * 2
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    reader, found = _mailbox._Reader(1), []
    for start in range(0, len(data), 50_000):
        ours.sendall(data[start : start + 50_000])
        messages, ended = reader.read(theirs)
        found += messages
        assert not ended
    assert [m.values for m in found] == [{"n": nbytes}] * 2
    assert all(torch.equal(m.tensors[0], x) for m in found)
    ours.close()
    theirs.close()


def test_a_text_that_is_too_long_is_refused_where_it_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_mailbox, "_TEXT", 100)
    with pytest.raises(ValueError, match=r"a message 'x' has 1.. bytes beside its tensors, and at most 100"):
        _mailbox._encoded("x", {"names": ["n" * 100]}, ())
    reader = _mailbox._Reader(1)
    reader._buffer = bytearray(struct.pack("!II", 101, 0))
    with pytest.raises(Malformed, match="a text of 101 bytes"):
        reader._advance([])


def told(stack: int, *at: str) -> _addresses.Facts:
    return {"host": f"n{stack}", "stack": ["kernel", 4, stack], "at": list(at)}


BRIDGE = "172.17.0.1/16"
PLACES = {
    "one host": ([told(1, "10.0.0.1/24", BRIDGE)] * 3, ["127.0.0.1"] * 3),
    "one host without a network": ([told(1)] * 2, ["127.0.0.1"] * 2),
    "two hosts": ([told(1, "10.0.0.1/24"), told(2, "10.0.0.2/24")], ["10.0.0.1", "10.0.0.2"]),
    "a bridge with one address everywhere": (
        [told(1, BRIDGE, "10.0.0.1/24"), told(2, BRIDGE, "10.0.0.2/24")],
        ["10.0.0.1", "10.0.0.2"],
    ),
    "uneven ranks and order": (
        [told(1, "10.1.0.1/16", "10.0.0.1/24")] * 2 + [told(2, "10.0.0.2/24", "10.1.0.2/16"), told(3, "10.1.0.3/16")],
        ["10.1.0.1", "10.1.0.1", "10.1.0.2", "10.1.0.3"],
    ),
}


@pytest.mark.parametrize("name", PLACES)
def test_ranks_listen_in_the_network_that_joins_them(name: str) -> None:
    ranks, right = PLACES[name]
    assert [_addresses.own(rank, ranks) for rank in range(len(ranks))] == right


def test_between_routed_networks_a_rank_listens_where_it_sends_from(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = [told(1, BRIDGE, "10.0.0.1/24"), told(2, BRIDGE, "10.9.0.2/24")]
    monkeypatch.setattr(_addresses, "_source", {"10.9.0.2": "10.0.0.1", "10.0.0.1": "10.9.0.2"}.get)
    assert [_addresses.own(rank, ranks) for rank in (0, 1)] == ["10.0.0.1", "10.9.0.2"]
    monkeypatch.setattr(_addresses, "_source", lambda _: None)
    with pytest.raises(UserError, match=r"n1 has no network in common with n2 and no route to them.*--iface"):
        _addresses.own(0, ranks)


def test_the_network_that_the_launcher_chose_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    here = [("eth0", "10.0.0.1/24"), ("ib0", "10.1.0.1/16"), ("docker0", BRIDGE)]
    found = [(name, _addresses.IPv4Interface(address)) for name, address in here]
    monkeypatch.setattr(_addresses, "_interfaces", lambda: iter(found))
    every = [address for _, address in here]
    for network, right in {
        "": every,
        "ib0": ["10.1.0.1/16"],
        "10.1.0.0/16": ["10.1.0.1/16"],
        "docker0,eth0": ["10.0.0.1/24", BRIDGE],
        "none-here": every,
    }.items():
        assert _addresses.facts(network)["at"] == right


def test_no_rank_begins_where_one_cannot_listen(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them hear of it, and none waits for a connection."""
    real, tried = socket.create_server, list[int]()

    def create_server(address: tuple[str, int], **options: Any) -> socket.socket:
        tried.append(1)
        if len(tried) == 2:
            raise OSError("no port is left")
        return real(address, **options)

    monkeypatch.setattr(socket, "create_server", create_server)

    def refused(comm: Communicator) -> str:
        with pytest.raises(UserError, match=r"no port is left.*rank .* on .*127.0.0.1") as error:
            comm.mailbox()
        return str(error.value)

    began = time.monotonic()
    assert len(set(threads.run(3, refused))) == 1
    assert time.monotonic() - began < 15

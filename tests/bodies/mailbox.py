"""What mailboxes must do on every engine that offers them. All ranks call each body."""

from __future__ import annotations

import torch

from hvd_train.comm.communicator import Communicator
from hvd_train.comm.messages import LOST, Mailbox, Message

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool]


def expect(mail: Mailbox, kind: str, timeout: float = 20) -> Message:
    message = mail.receive(timeout)
    assert message is not None, f"rank {mail.rank} received no '{kind}' in {timeout} s"
    assert message.kind == kind
    return message


def messages_of_every_rank_arrive_in_order(comm: Communicator) -> None:
    mail = comm.mailbox()
    for number in range(20):
        for dst in range(comm.size):
            mail.send(dst, "hello", torch.full((number,), float(comm.rank)), number=number)
    numbers_of: dict[int, list[int]] = {r: [] for r in range(comm.size)}
    for _ in range(20 * comm.size):
        message = expect(mail, "hello")
        numbers_of[message.source].append(message.values["number"])
        assert torch.equal(message.tensors[0], torch.full((message.values["number"],), float(message.source)))
    assert all(numbers == list(range(20)) for numbers in numbers_of.values())
    mail.close()
    comm.barrier()


def tensors_arrive_as_they_were(comm: Communicator) -> None:
    sent = [torch.arange(7).to(d).view(7, 1) for d in DTYPES] + [torch.tensor(3.5), torch.empty(0, 4)]
    sent.append(torch.arange(12.0).view(3, 4).t())
    mail = comm.mailbox()
    mail.send((comm.rank + 1) % comm.size, "tensors", *sent, note={"a": [1, None, "b"]})
    message = expect(mail, "tensors")
    assert message.values == {"note": {"a": [1, None, "b"]}}
    assert [(t.dtype, t.shape) for t in message.tensors] == [(t.dtype, t.shape) for t in sent]
    assert all(torch.equal(a, b) for a, b in zip(message.tensors, sent, strict=True))
    mail.close()
    comm.barrier()


def a_rank_that_does_not_receive_blocks_no_sender(comm: Communicator) -> None:
    """Ranks send 64 MiB to each rank before any receives, and overwrite the tensor at once."""
    mail = comm.mailbox()
    big = torch.full((4 << 20,), float(comm.rank))
    for dst in range(comm.size):
        for _ in range(4):
            mail.send(dst, "big", big)
    before = big.clone()
    big.zero_()
    comm.barrier()
    for _ in range(4 * comm.size):
        message = expect(mail, "big")
        assert torch.equal(message.tensors[0], torch.full_like(before, float(message.source)))
    mail.close()
    comm.barrier()


def bytes_are_counted(comm: Communicator) -> None:
    mail = comm.mailbox()
    before = comm.bytes_sent
    mail.send((comm.rank + 1) % comm.size, "count", torch.zeros(10_000))
    sent = comm.bytes_sent - before
    assert 40_000 <= sent <= 40_200 if comm.size > 1 else sent == 0
    expect(mail, "count")
    mail.close()
    comm.barrier()


def a_lost_rank_is_announced(comm: Communicator) -> None:
    """LOST follows the last message of a rank that hangs up, not of one that closes.

    Messages to either are dropped.
    """
    mail = comm.mailbox()
    gone, closed = comm.size - 1, comm.size - 2
    if comm.size < 3:
        mail.close()
        return
    if comm.rank == gone:
        for dst in range(comm.size - 1):
            mail.send(dst, "last", torch.ones(1000))
        mail.hang_up()
    elif comm.rank == closed:
        mail.close()
    else:
        assert expect(mail, "last").source == gone
        assert expect(mail, LOST).source == gone
        for dst in (gone, closed):
            mail.send(dst, "late", torch.ones(1 << 20))
        assert mail.receive(0.2) is None
        mail.close()
    comm.barrier()


BODIES = [
    messages_of_every_rank_arrive_in_order,
    tensors_arrive_as_they_were,
    a_rank_that_does_not_receive_blocks_no_sender,
    bytes_are_counted,
    a_lost_rank_is_announced,
]

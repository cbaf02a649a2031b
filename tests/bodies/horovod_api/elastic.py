"""TorchState, ElasticSampler and run, with errors that the script raises."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.bodies.horovod_api.base import Hvd, bodies, same


def a_state_goes_back_to_its_commit(hvd: Hvd) -> None:
    model, optimizer = _trained(hvd.rank())
    state = hvd.elastic.TorchState(model=model, optimizer=optimizer, epoch=3, batch=0)
    weight, momentum = _weight(model).clone(), _momentum(optimizer).clone()
    state.epoch, state.batch = 4, 5
    state.commit()
    _train(model, optimizer)
    state.epoch = 9
    state.restore()
    assert (state.epoch, state.batch) == (4, 5)
    same(_weight(model), weight)
    same(_momentum(optimizer), momentum)
    assert state.model is model
    assert state.optimizer is optimizer


def a_state_that_was_never_committed_goes_back_to_its_start(hvd: Hvd) -> None:
    model, optimizer = _trained(hvd.rank())
    before = _weight(model).clone()
    state = hvd.elastic.TorchState(model, optimizer, epoch=1)
    _train(model, optimizer)
    state.epoch = 2
    state.restore()
    assert state.epoch == 1
    same(_weight(model), before)


def sync_takes_the_state_of_the_first_rank(hvd: Hvd) -> None:
    model, optimizer = _trained(hvd.rank())
    first, first_optimizer = _trained(0)
    state = hvd.elastic.TorchState(model=model, optimizer=optimizer, epoch=10 + hvd.rank(), best=[hvd.rank()])
    state.sync()
    assert (state.epoch, state.best) == (10, [0])
    same(_weight(model), _weight(first))
    same(_momentum(optimizer), _momentum(first_optimizer))


def several_models_in_a_state(hvd: Hvd) -> None:
    models = [_trained(10 * k + hvd.rank())[0] for k in range(2)]
    state = hvd.elastic.TorchState(generator=models[0], critic=models[1])
    state.sync()
    same(_weight(state.generator), _weight(_trained(0)[0]))
    same(_weight(state.critic), _weight(_trained(10)[0]))


def a_sampler_gives_every_sample_to_one_rank(hvd: Hvd) -> None:
    for shuffle in (False, True):
        sampler = hvd.elastic.ElasticSampler(range(4 * hvd.size()), shuffle=shuffle, seed=3)
        assert len(sampler) == 4
        assert sorted(i for part in hvd.allgather_object(list(sampler)) for i in part) == list(range(4 * hvd.size()))


def a_sampler_fills_up_with_its_first_samples(hvd: Hvd) -> None:
    """All ranks have equally many samples, also if the data does not divide evenly."""
    sampler = hvd.elastic.ElasticSampler(range(4 * hvd.size() + 1), shuffle=False)
    assert len(sampler) == 5
    found = [i for part in hvd.allgather_object(list(sampler)) for i in part]
    assert sorted(found) == sorted([*range(4 * hvd.size() + 1), *range(hvd.size() - 1)])


def a_sampler_leaves_out_what_was_processed(hvd: Hvd) -> None:
    sampler = hvd.elastic.ElasticSampler(range(6 * hvd.size()), shuffle=False)
    for number in range(2):
        sampler.record_batch(number, 2)
    assert sampler.processed_num == 4 * hvd.size()
    sampler.reset()
    assert sorted(i for part in hvd.allgather_object(list(sampler)) for i in part) == list(
        range(4 * hvd.size(), 6 * hvd.size())
    )
    sampler.set_epoch(1)
    assert len(sampler) == 6


def a_sampler_orders_each_epoch_anew(hvd: Hvd) -> None:
    sampler = hvd.elastic.ElasticSampler(range(50 * hvd.size()), seed=1)
    first = list(sampler)
    assert list(sampler) == first
    sampler.set_epoch(1)
    assert list(sampler) != first
    sampler.set_epoch(0)
    assert list(sampler) == first


def a_sampler_goes_with_its_state(hvd: Hvd) -> None:
    sampler = hvd.elastic.ElasticSampler(range(6 * hvd.size()), shuffle=False)
    state = hvd.elastic.TorchState(sampler=sampler, batch=0)
    sampler.record_batch(0, 2)
    state.commit()
    sampler.record_batch(1, 2)
    state.restore()
    assert sampler.processed_num == 2 * hvd.size()
    assert len(sampler) == 4
    assert sampler.state_dict() == {"epoch": 0, "processed_num": 2 * hvd.size()}
    state.sync()
    assert len(sampler) == 4


def run_returns_what_the_function_returns(hvd: Hvd) -> None:
    @hvd.elastic.run
    def train(state: Any, more: int, *, factor: int) -> int:
        return int(state.epoch + more * factor)

    assert train(hvd.elastic.TorchState(epoch=1 + hvd.rank()), 2, factor=3) == 7


def run_goes_back_to_the_commit_after_an_error(hvd: Hvd) -> None:
    """The function sees the committed state again, and the reset callbacks have been called."""
    model, optimizer = _trained(hvd.rank())
    state = hvd.elastic.TorchState(model=model, optimizer=optimizer, epoch=0)
    seen: list[Any] = []
    state.register_reset_callbacks([lambda: seen.append("reset")])

    @hvd.elastic.run
    def train(state: Any) -> Tensor:
        seen.append(state.epoch)
        while state.epoch < 4:
            state.epoch += 1
            if state.epoch == 3 and len(seen) == 1:
                _train(model, optimizer)
                raise hvd.HorovodInternalError("as if a rank were lost")
            if state.epoch == 2:
                state.commit()
        return _weight(model).clone()

    found = train(state)
    assert seen == [0, "reset", 2]
    assert state.epoch == 4
    same(found, _weight(_trained(0)[0]))


def run_keeps_what_was_not_committed_when_hosts_change(hvd: Hvd) -> None:
    state = hvd.elastic.TorchState(epoch=0)
    interrupt = _exceptions(hvd).HostsUpdatedInterrupt
    calls: list[int] = []

    @hvd.elastic.run
    def train(state: Any) -> None:
        calls.append(state.epoch)
        if len(calls) == 1:
            state.epoch = 5
            state.save()
            state.epoch = 6
            raise interrupt(skip_sync=True)

    train(state)
    assert calls == [0, 6]


def another_exception_passes_through_run(hvd: Hvd) -> None:
    @hvd.elastic.run
    def train(state: Any) -> None:
        raise KeyError(state.epoch)

    with pytest.raises(KeyError, match="1"):
        train(hvd.elastic.TorchState(epoch=1))


def _exceptions(hvd: Hvd) -> Any:
    ours = hvd.__name__ == "hvd_train.torch"
    return importlib.import_module("hvd_train.torch.exceptions" if ours else "horovod.common.exceptions")


def _trained(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return a model and an optimizer after one step, equal for equal `seed`."""
    torch.manual_seed(seed)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.5)
    _train(model, optimizer)
    return model, optimizer


def _train(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.ones(1, 3)).pow(2).sum().backward()
    optimizer.step()


def _weight(model: nn.Module) -> Tensor:
    return model.state_dict()["weight"]


def _momentum(optimizer: torch.optim.Optimizer) -> Tensor:
    found: Tensor = optimizer.state_dict()["state"][0]["momentum_buffer"]
    return found


BODIES = bodies(globals())

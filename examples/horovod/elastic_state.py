"""Training that returns to its last commit after a failed operation.

Run it with: ddl run --np 2 examples/horovod/elastic_state.py
`--fail-at EPOCH` causes one failure.
"""

import argparse

import horovod.torch as hvd
import torch
from digits import datasets, evaluate, network
from mpi4py import MPI  # noqa: F401  Horovod can restart under mpirun only if it did not start MPI itself
from torch import nn
from torch.utils.data import DataLoader


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--fail-at", type=int, help="the epoch that fails once")
    args = parser.parse_args()

    hvd.init()
    torch.manual_seed(hvd.rank())
    train_set, test_set = datasets()
    model = network()
    inner = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    optimizer = hvd.DistributedOptimizer(inner, named_parameters=model.named_parameters())
    sampler = hvd.elastic.ElasticSampler(train_set)
    state = hvd.elastic.TorchState(model=model, optimizer=optimizer, sampler=sampler, epoch=0)
    restarts = []
    state.register_reset_callbacks([lambda: restarts.append(state.epoch)])

    @hvd.elastic.run
    def train(state):
        while state.epoch < args.epochs:
            for number, (images, labels) in enumerate(DataLoader(train_set, batch_size=32, sampler=sampler)):
                if state.epoch == args.fail_at and number == 5 and not restarts:
                    raise hvd.HorovodInternalError("a failure, as --fail-at requests")
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(images), labels).backward()
                optimizer.step()
                sampler.record_batch(number, len(images))
            state.epoch += 1
            sampler.set_epoch(state.epoch)
            state.commit()

    train(state)
    loss, accuracy = evaluate(model, test_set)
    if hvd.rank() == 0:
        print(f"restarted from epochs {restarts}: test loss {loss:.4f}, accuracy {accuracy:.4f}")


if __name__ == "__main__":
    main()

"""Handwritten digits with Horovod's API: ddl run --np 2 examples/horovod/digits.py

This is an ordinary Horovod script. `--engine mpi` runs it on ddl's own engine, without Horovod.
`--engine horovod` runs it on Horovod.
"""

import argparse

import horovod.torch as hvd
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler


def datasets():
    """Return the training set, four fifths of the digits, and the test set."""
    digits = load_digits()
    images, labels = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
    test = torch.arange(len(images)) % 5 == 0
    return TensorDataset(images[~test], labels[~test]), TensorDataset(images[test], labels[test])


def network():
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def evaluate(model, dataset):
    """Return the loss and accuracy over the whole data set. Each rank evaluates its part."""
    sampler = DistributedSampler(dataset, num_replicas=hvd.size(), rank=hvd.rank(), shuffle=False)
    images, labels = next(iter(DataLoader(dataset, batch_size=len(sampler), sampler=sampler)))
    with torch.no_grad():
        scores = model(images)
    return (
        metric_average(nn.functional.cross_entropy(scores, labels), "loss"),
        metric_average((scores.argmax(1) == labels).float().mean(), "accuracy"),
    )


def metric_average(value, name):
    return hvd.allreduce(value, name=f"metric.{name}").item()


def train(model, optimizer, dataset, *, epochs, batch_size):
    sampler = DistributedSampler(dataset, num_replicas=hvd.size(), rank=hvd.rank())
    loader = DataLoader(dataset, batch_size=batch_size, sampler=sampler)
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        for images, labels in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=32, help="samples of one rank in a step")
    parser.add_argument("--lr", type=float, default=0.05, help="learning rate of one rank")
    args = parser.parse_args()

    hvd.init()
    torch.manual_seed(hvd.rank())
    train_set, test_set = datasets()
    model = network()
    inner = torch.optim.SGD(model.parameters(), lr=args.lr * hvd.size(), momentum=0.9)
    optimizer = hvd.DistributedOptimizer(inner, named_parameters=model.named_parameters())
    hvd.broadcast_parameters(model.state_dict(), root_rank=0)
    hvd.broadcast_optimizer_state(optimizer, root_rank=0)

    train(model, optimizer, train_set, epochs=args.epochs, batch_size=args.batch_size)
    loss, accuracy = evaluate(model, test_set)
    if hvd.rank() == 0:
        print(f"{hvd.size()} ranks: test loss {loss:.4f}, accuracy {accuracy:.4f}")


if __name__ == "__main__":
    main()

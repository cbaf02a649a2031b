"""Gradient accumulation and clipping: ddl run --np 2 examples/horovod/gradient_accumulation.py"""

import argparse

import horovod.torch as hvd
import torch
from digits import datasets, evaluate, network
from torch import nn
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=16, help="samples of one backward pass")
    parser.add_argument("--passes", type=int, default=4, help="backward passes of a step")
    args = parser.parse_args()

    hvd.init()
    torch.manual_seed(0)
    train_set, test_set = datasets()
    model = network()
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9),
        named_parameters=model.named_parameters(),
        backward_passes_per_step=args.passes,
    )
    hvd.broadcast_parameters(model.state_dict(), root_rank=0)

    sampler = DistributedSampler(train_set, num_replicas=hvd.size(), rank=hvd.rank())
    loader = DataLoader(train_set, batch_size=args.batch_size * args.passes, sampler=sampler, drop_last=True)
    for epoch in range(args.epochs):
        sampler.set_epoch(epoch)
        for images, labels in loader:
            optimizer.zero_grad()
            for x, y in zip(images.split(args.batch_size), labels.split(args.batch_size), strict=True):
                (nn.functional.cross_entropy(model(x), y) / args.passes).backward()
            optimizer.synchronize()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            with optimizer.skip_synchronize():
                optimizer.step()

    loss, accuracy = evaluate(model, test_set)
    if hvd.rank() == 0:
        print(f"{args.passes} passes a step: test loss {loss:.4f}, accuracy {accuracy:.4f}")


if __name__ == "__main__":
    main()

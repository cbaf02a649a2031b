"""Images per second of a convolutional network on random images.

Run it with: ddl run --np 2 examples/horovod/synthetic_benchmark.py
"""

import argparse
import statistics
import time

import horovod.torch as hvd
import torch
from torch import nn


def network(width):
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1), nn.BatchNorm2d(2 * width), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(2 * width, 1000),
    )  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch-size", type=int, default=16, help="images of one rank in a step")
    parser.add_argument("--width", type=int, default=16, help="channels of the first layer")
    parser.add_argument("--num-warmup-batches", type=int, default=5)
    parser.add_argument("--num-batches-per-iter", type=int, default=5)
    parser.add_argument("--num-iters", type=int, default=5)
    parser.add_argument("--fp16-allreduce", action="store_true", help="send gradients as float16")
    args = parser.parse_args()

    hvd.init()
    model = network(args.width)
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.01),
        named_parameters=model.named_parameters(),
        compression=hvd.Compression.fp16 if args.fp16_allreduce else hvd.Compression.none,
    )
    hvd.broadcast_parameters(model.state_dict(), root_rank=0)
    hvd.broadcast_optimizer_state(optimizer, root_rank=0)
    images, labels = torch.randn(args.batch_size, 3, 32, 32), torch.randint(1000, (args.batch_size,))

    def steps(count):
        for _ in range(count):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()

    def rate():
        start = time.perf_counter()
        steps(args.num_batches_per_iter)
        return args.batch_size * args.num_batches_per_iter / (time.perf_counter() - start)

    steps(args.num_warmup_batches)
    rates = []
    for number in range(args.num_iters):
        rates.append(rate())
        log(f"Iter #{number}: {rates[-1]:.1f} img/sec per CPU")
    mean, spread = statistics.mean(rates), 1.96 * statistics.pstdev(rates)
    log(f"Img/sec per CPU: {mean:.1f} +-{spread:.1f}")
    log(f"Total img/sec on {hvd.size()} CPU(s): {hvd.size() * mean:.1f} +-{hvd.size() * spread:.1f}")


def log(text):
    if hvd.rank() == 0:
        print(text, flush=True)


if __name__ == "__main__":
    main()

"""The arguments of a plain script, and the line that it prints."""

from __future__ import annotations

import json
import resource
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path

import psutil
import torch
from torch import Tensor

FEW = 64


def arguments(description: str | None, epochs: int) -> Namespace:
    """Parse the command line, and set the threads and the seed of torch."""
    parser = ArgumentParser(description=description)
    parser.add_argument("--data", type=Path, help="the file that `ddl data fetch` prepares")
    parser.add_argument("--seed", type=int, default=0, help="of initial weights and the order of samples")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=epochs)
    parser.add_argument("--limit", type=int, help="stop training after so many steps, and evaluate on few samples")
    parser.add_argument("--model", type=Path, help="folder of the pretrained model, where one is used")
    parser.add_argument("--augment", action="store_true", help="mnist_cnn: shift and rotate training images")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    return options


def held_out(samples: int, fraction: float, options: Namespace) -> tuple[Tensor, Tensor]:
    """Return random positions of training and test samples, the same in every run; with `--limit` few of the latter."""
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(0))
    cut = samples - round(samples * fraction)
    return order[:cut], order[cut:][: FEW if options.limit else None]


def batches(rows: Tensor, lengths: Tensor, size: int, pool: int) -> list[Tensor]:
    """Divide `rows` into shuffled batches of similar lengths, which are sorted in pools of so many batches."""
    pools = rows[torch.randperm(len(rows))].split(size * pool)
    divided = [batch for part in pools for batch in part[lengths[part].argsort()].split(size)]
    return [divided[number] for number in torch.randperm(len(divided)).tolist()]


def report(metrics: dict[str, float], steps: int, training: tuple[float, float] | None = None) -> None:
    """Print the metrics, the seconds since the process started, its CPU seconds, and its peak memory in MB.

    `training` is what `times` returned before the script wrote texts.
    """
    seconds, cpu_seconds = times()
    trained = training or (seconds, cpu_seconds)
    figures = {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "writing_seconds": seconds - trained[0],
        "writing_cpu_seconds": cpu_seconds - trained[1],
        "memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "steps": steps,
    }
    print(json.dumps({**metrics, **figures}), flush=True)


def times() -> tuple[float, float]:
    """Return the seconds since the process started, and its CPU seconds."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return time.time() - psutil.Process().create_time(), usage.ru_utime + usage.ru_stime

"""`ddl init`: write a starter YAML file."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from hvd_train.errors import UserError
from hvd_train.text.names import printable

STARTER = """\
# Start this run with: ddl run --np 2 {name}
# Override any field with: ddl run --np 2 {name} train.epochs=3 optimizer.lr=0.01

seed: 0

model:
  name: mlp                  # see ddl list models; for your own, target: package.module:callable, args: {{...}}
  hidden: [128, 64]

data:
  name: digits               # see ddl list data; for your own, target: package.module:callable, args: {{...}}
                             # an agent that learns in an environment: docs/agents.md
  batch_size: 32             # samples per rank; the global batch is np times that
  partition: random          # see ddl list partitions

optimizer:
  name: AdamW                # any class of torch.optim, with its options
  lr: 0.004

schedule:
  name: cosine               # constant, cosine, linear or step
  warmup_steps: 20

train:
  epochs: 20                 # or steps: N
  # precision: bf16          # fp32, fp64, bf16 or fp16
  # accumulate: 2            # micro-batches per step
  # clip_norm: 1.0
  # early_stop: {{metric: loss, patience: 3}}

sync:
  strategy: allreduce        # see ddl list strategies
  compression: none          # see ddl list compressors
  fusion_mb: auto

checkpoint:
  every: epoch               # or a number of steps; resume with: ddl run --resume latest {name}
  keep: 3
"""


def command(
    file: Annotated[Path, typer.Argument(help="File to write.")] = Path("model.yaml"),
) -> None:
    """Write a commented starter YAML file."""
    name = shlex.quote(printable(file))
    try:
        with file.open("x", encoding="utf-8") as stream:
            stream.write(STARTER.format(name=name))
    except FileExistsError:
        raise UserError(f"init: {file} exists; give another name") from None
    except OSError as error:
        raise UserError(f"init: cannot write {file}: {error.strerror}") from None
    print(f"{printable(file)} written; start it with: ddl run --np 2 {name}")

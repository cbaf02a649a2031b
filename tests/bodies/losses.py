"""Bodies of tests of losses whose ranks have unequal numbers of tokens, labels or weights."""

from __future__ import annotations

import copy
from collections import OrderedDict
from itertools import cycle
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hvd_train.comm.communicator import Communicator
from hvd_train.comm.engines.single import SingleCommunicator
from hvd_train.compute.calling import caller
from hvd_train.compute.loss import total, units
from hvd_train.config.schema import Config
from hvd_train.data.batch import divide
from tests.bodies import training as body

SAMPLES, LENGTH, CLASSES, GLOBAL_BATCH, STEPS = 144, 6, 5, 24, 20
HERE = "tests.bodies.losses"


def tokens() -> list[Any]:
    """Return sequences. Those that round_robin deals to the first of two ranks have twice the targets."""
    generator = torch.Generator().manual_seed(6)
    x = torch.randint(CLASSES, (SAMPLES, LENGTH), generator=generator)
    lengths = torch.where(torch.arange(SAMPLES) % 2 == 0, LENGTH, LENGTH // 2)
    present = torch.arange(LENGTH) < lengths[:, None]
    y = torch.where(present, (x * 2 + 1) % CLASSES, -100)
    return [{"input_ids": a, "attention_mask": m, "labels": b} for a, m, b in zip(x, present.long(), y, strict=True)]


def multi_hot() -> list[Any]:
    """Return samples with three labels each, of which some are missing."""
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(SAMPLES, 4, generator=generator)
    y = (x[:, :3] > 0.3).double()
    y[::2, 1] = y[::3, 0] = -1
    return [(a, b) for a, b in zip(x, y, strict=True)]


def spoken() -> list[Any]:
    """Return inputs of unequal length with labels of unequal number, both padded."""
    generator = torch.Generator().manual_seed(8)
    x = torch.randn(SAMPLES, 8, 4, generator=generator)
    return [
        {
            "x": x[i],
            "steps": torch.tensor(8 - i % 3),
            "labels": torch.tensor([i % 4 + 1, 2, 3][: 1 + i % 3] + [0] * (2 - i % 3)),
        }
        for i in range(SAMPLES)
    ]


class Output(OrderedDict[str, Any]):
    """A mapping whose values are attributes too, as the outputs of transformers."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


class Causal(nn.Module):
    """Predicts the next label, and returns the mean over the labels, as models of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(CLASSES, 4)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None) -> Output:
        hidden = self.embedding(input_ids)
        if attention_mask is not None:
            hidden = hidden * attention_mask[..., None]
        logits = self.head(hidden.cumsum(1))
        if labels is None:
            return Output(logits=logits)
        loss = F.cross_entropy(logits[:, :-1].reshape(-1, CLASSES), labels[:, 1:].reshape(-1))
        return Output(loss=loss, logits=logits)


class Tagger(nn.Module):
    """Returns scores with classes in the second dimension, as torch's losses take them."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(CLASSES, CLASSES)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.embedding(input_ids).transpose(1, 2)  # type: ignore[no-any-return]


class Listener(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).log_softmax(-1)  # type: ignore[no-any-return]


def labels_model() -> nn.Module:
    return nn.Linear(4, 3)


CASES: dict[str, tuple[str, str, Any]] = {
    "model": ("Causal", "tokens", {"name": "model", "shifted": True}),
    "positions": ("Tagger", "tokens", {"name": "cross_entropy", "label_smoothing": 0.1}),
    "weighted positions": ("Tagger", "tokens", {"name": "cross_entropy", "class_weights": [1.0, 0.1, 3.0, 0.2, 0.5]}),
    "labels": ("labels_model", "multi_hot", {"name": "bce", "ignore_value": -1.0, "pos_weight": "balanced"}),
    "ctc": ("Listener", "spoken", {"name": "ctc", "input_lengths": "steps", "target_padding": 0}),
}
STRATEGIES: dict[str, dict[str, Any]] = {
    "allreduce": {"shard_optimizer": False},
    "sharded": {"shard_optimizer": "auto"},
    "parameter_server": {"strategy": "parameter_server", "fusion_mb": None},
}


def configuration(case: str, size: int, accumulate: int = 1, **sections: Any) -> Config:
    """Return the case with a global batch of `GLOBAL_BATCH` for any `size`."""
    model, data, loss = CASES[case]
    sections.setdefault("train", {"steps": STEPS, "epochs": None})
    sections["train"] |= {"loss": copy.deepcopy(loss), "accumulate": accumulate}
    return body.configuration(
        model={"target": f"{HERE}:{model}"},
        data={
            "target": f"{HERE}:{data}",
            "batch_size": GLOBAL_BATCH // size // accumulate,
            "partition": "round_robin",
        },
        **sections,
    )


def unequal_ranks_equal_one_process(comm: Communicator) -> None:
    others = zip([case for case in CASES if case != "model"], cycle(STRATEGIES))
    wanted = [*(("model", strategy) for strategy in STRATEGIES), *others]
    with body.alone(comm):
        expected = {case: body.trained(SingleCommunicator(), configuration(case, 1)) for case in CASES}
    for number, (case, strategy) in enumerate(wanted):
        config = configuration(case, comm.size, 1 + number % 2, sync=STRATEGIES[strategy])
        try:
            body.assert_close(body.trained(comm, config), expected[case], 1e-9)
        except AssertionError as error:
            raise AssertionError(f"{case} with {strategy}: {error}") from None


def replicas_minimise_their_own_mean(comm: Communicator) -> None:
    """Local SGD on tokens equals steps on each rank's own mean, averaged after every other step."""
    plain = {"momentum": 0.0, "weight_decay": 0.0}
    sections = {"sync": {"strategy": "local_sgd", "period": 2}, "optimizer": plain}
    config = configuration("positions", comm.size, **sections, train={"steps": 6, "epochs": None})
    job = body.trainer(comm, config)
    model, plan, loss = copy.deepcopy(job.model), job.sampler.plan(0), job.execution.loss
    for step in range(6):
        batch = divide(job.data.train.batch(plan.micro_batches(step)[0]))
        value = total(loss(caller(model)(batch.inputs), batch)) / units(loss, batch)
        gradients = torch.autograd.grad(value, list(model.parameters()))
        with torch.no_grad():
            for p, gradient in zip(model.parameters(), gradients, strict=True):
                p -= 0.1 * gradient
                if step % 2:
                    comm.all_reduce_(p.data, "mean")
    job.run()
    body.assert_close(body.parameters(job), {n: p.detach() for n, p in model.named_parameters()}, 1e-9)


BODIES = [unequal_ranks_equal_one_process, replicas_minimise_their_own_mean]

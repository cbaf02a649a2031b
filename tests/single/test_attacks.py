"""Attacks on models whose smallest perturbation is known, and their limits."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hvd_train.compute.attacking import Domain, Norm, Problem, cross_entropy, seeds_of, wrong
from hvd_train.compute.attacks.apgd import checkpoints, difference_of_logits_ratio
from hvd_train.compute.attacks.square import share_of_window
from hvd_train.config import plugins
from hvd_train.trained.attacking.robustness import curve, joined, levels

ATTACKS = "hvd_train.compute.attacks"
NAMES = plugins.names(ATTACKS)
FEW: dict[str, dict[str, int]] = {
    "fgsm": {},
    "pgd": {"steps": 10},
    "apgd": {"steps": 20},
    "square": {"queries": 60},
    "auto": {"steps": 10, "queries": 30},
}
NORMS: tuple[Norm, ...] = ("linf", "l2")


def problem(
    model: nn.Module, inputs: Tensor, norm: Norm = "linf", epsilon: float = 0.0, domain: Domain | None = None
) -> Problem:
    """Return the attack of what `model` now answers."""
    free = domain or Domain("values", torch.ones(()), torch.zeros(()))
    targets = model(inputs + 0.0).argmax(1)
    return Problem(model, cross_entropy, inputs, targets, seeds_of(inputs), free.to(inputs), epsilon, norm)


def linear(inputs: int = 8, classes: int = 2) -> nn.Linear:
    torch.manual_seed(3)
    return nn.Linear(inputs, classes).double()


def images(samples: int = 12, side: int = 6) -> tuple[nn.Module, Tensor, Domain]:
    """Return a model of standardised images, inputs, and their domain."""
    torch.manual_seed(5)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * (side - 2) ** 2, 4)).double()
    mean, std = torch.tensor([0.4, 0.5, 0.6])[:, None, None], torch.tensor([0.2, 0.25, 0.3])[:, None, None]
    x = torch.rand(samples, 3, side, side, dtype=torch.float64)
    x[0] = 0.0
    return model, (x - mean) / std, Domain("pixels", 1 / std, mean, (0.0, 1.0))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", ["fgsm", "pgd", "apgd", "auto"])
def test_a_linear_model_breaks_exactly_beyond_its_margin(name: str, norm: Norm) -> None:
    """The smallest perturbation of a linear model is |margin| / |w|, in the dual norm of w."""
    model, x = linear(), torch.randn(40, 8, dtype=torch.float64)
    scores, w = model(x), model.weight[0] - model.weight[1]
    radius = (scores[:, 0] - scores[:, 1]).abs() / w.norm(p=1 if norm == "linf" else 2)
    epsilons = [0.0, *torch.quantile(radius.detach(), torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)).tolist(), 9.0]
    found = levels(problem(model, x, norm), plugins.create(ATTACKS, name, **FEW[name]), epsilons)
    for level, smallest in zip(found.tolist(), radius.tolist(), strict=True):
        assert level == next(number for number, epsilon in enumerate(epsilons) if epsilon > smallest + 1e-9)


@pytest.mark.parametrize("norm", NORMS)
def test_the_square_attack_is_between_the_margin_and_twice_the_margin(norm: Norm) -> None:
    model, x = linear(), torch.randn(40, 8, dtype=torch.float64)
    scores, w = model(x), model.weight[0] - model.weight[1]
    radius = (scores[:, 0] - scores[:, 1]).abs() / w.norm(p=1 if norm == "linf" else 2)
    attack = plugins.create(ATTACKS, "square", queries=500)
    for row in range(0, 40, 8):
        one = problem(model, x[row : row + 1], norm)
        below, above = radius[row].item() * 0.999, radius[row].item() * 2
        assert levels(one, attack, [0.0, below, above]).tolist() == [2]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", NAMES)
def test_perturbations_keep_their_limits(name: str, norm: Norm) -> None:
    """The norm counts raw values, whatever the scale of the model's inputs, and pixels stay in 0 to 1."""
    model, x, domain = images()
    epsilon = 0.1 if norm == "linf" else 0.8
    of = problem(model, x, norm, epsilon, domain)
    delta = plugins.create(ATTACKS, name, **FEW[name])(of)
    size = delta.flatten(1).norm(p=math.inf if norm == "linf" else 2, dim=1)
    raw = (x + of.domain.scale * delta) / of.domain.scale + of.domain.offset
    assert delta.shape == x.shape
    assert float(size.max()) <= epsilon * (1 + 1e-9)
    assert float(size.max()) > epsilon / 2
    assert float(raw.min()) >= -1e-9
    assert float(raw.max()) <= 1 + 1e-9


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", NAMES)
def test_epsilon_zero_changes_no_bit(name: str, norm: Norm) -> None:
    model, x, domain = images()
    of = problem(model, x, norm, 0.0, domain)
    delta = plugins.create(ATTACKS, name, **FEW[name])(of)
    assert torch.equal(x + of.domain.scale * delta, x)
    assert torch.equal(of.scores(delta), of.scores(of.zero))


@pytest.mark.parametrize("name", NAMES)
def test_inputs_of_scale_zero_do_not_change_the_model(name: str) -> None:
    model, x = linear(), torch.randn(10, 8, dtype=torch.float64)
    fixed = Domain("values", torch.tensor([0.0, 0.0, 1, 1, 1, 1, 2, 2]), torch.zeros(()))
    of = problem(model, x, "linf", 0.5, fixed)
    changed = x + of.domain.scale * plugins.create(ATTACKS, name, **FEW[name])(of)
    assert torch.equal(changed[:, :2], x[:, :2])
    assert not torch.equal(changed[:, 2:], x[:, 2:])


@pytest.mark.parametrize("name", ["pgd", "square", "apgd"])
def test_a_sample_is_attacked_alike_in_every_batch(name: str) -> None:
    model, x, domain = images()
    attack = plugins.create(ATTACKS, name, **FEW[name])
    whole = attack(problem(model, x, "linf", 0.05, domain))
    parts = [attack(problem(model, part, "linf", 0.05, domain)) for part in x.split(5)]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-12)


def test_pgd_without_a_perturbation_that_is_wrong_returns_that_of_the_largest_loss() -> None:
    model, x = linear(classes=3), torch.randn(20, 8, dtype=torch.float64)
    of = problem(model, x, "linf", 1e-4)
    delta = plugins.create(ATTACKS, "pgd", steps=8, restarts=2)(of)
    assert not wrong(of.scores(delta), of.targets).any()
    assert (cross_entropy(of.outputs(delta), of) > cross_entropy(of.outputs(of.start(0)), of)).all()


def test_restarts_only_add_wrong_samples() -> None:
    model, x, domain = images(40)

    def left(restarts: int) -> Tensor:
        of = problem(model, x, "linf", 0.03, domain)
        return wrong(of.scores(plugins.create(ATTACKS, "pgd", steps=2, restarts=restarts)(of)), of.targets)

    assert (left(4) | ~left(1)).all()


def test_robust_accuracy_falls_monotonically() -> None:
    """Also under an attack that gets weaker with epsilon: a smaller perturbation is a larger one too."""
    model, x = linear(classes=3), torch.randn(60, 8, dtype=torch.float64)
    attack = plugins.create(ATTACKS, "fgsm")
    epsilons = [0.0, 0.1, 0.2, 0.4, 0.8]
    found = levels(problem(model, x), lambda of: attack(of) * (0.0 if of.epsilon > 0.3 else 1.0), epsilons).tolist()
    shares = curve(found, epsilons)
    assert shares[0] == 1.0
    assert shares == sorted(shares, reverse=True)
    assert shares[2] == shares[3] == shares[4] < 1.0
    one_by_one = [levels(problem(model, x), attack, [epsilon]).eq(0).sum().item() for epsilon in (0.1, 0.2)]
    assert [round(60 * (1 - share)) for share in shares[1:3]] == one_by_one


def test_levels_of_batches_are_joined_in_their_order() -> None:
    assert joined([{"0": [1, 2], "10": [5]}, {"2": [3]}, {}]) == [1, 2, 3, 5]


def test_parameters_get_no_gradient_and_their_hooks_do_not_run() -> None:
    model, x, domain = images()
    calls: list[Any] = []
    for p in model.parameters():
        p.register_hook(calls.append)
        p.register_post_accumulate_grad_hook(calls.append)
    plugins.create(ATTACKS, "pgd")(problem(model, x, "linf", 0.1, domain))
    assert not calls
    assert all(p.grad is None for p in model.parameters())


def test_apgd_checks_progress_at_the_steps_of_the_paper() -> None:
    assert sorted(checkpoints(100)) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert sorted(checkpoints(10)) == [3, 5, 6, 7, 8, 9, 10]


def test_the_difference_of_logits_ratio() -> None:
    scores = torch.tensor([[3.0, 1.0, -1.0, 0.0], [3.0, 1.0, -1.0, 0.0]])
    model, x = linear(), torch.zeros(2, 8, dtype=torch.float64)
    of = Problem(model, cross_entropy, x, torch.tensor([0, 2]), [0, 1], problem(model, x).domain, 0.0)
    wanted = torch.tensor([-(3.0 - 1.0) / 3.0, -(-1.0 - 3.0) / 3.0])
    torch.testing.assert_close(difference_of_logits_ratio(scores, of), wanted)
    torch.testing.assert_close(difference_of_logits_ratio(scores * 50 + 7, of), wanted)


@pytest.mark.parametrize(("query", "halvings"), [(0, 0), (10, 0), (11, 1), (200, 2), (201, 3), (8001, 9)])
def test_windows_of_the_square_attack_shrink(query: int, halvings: int) -> None:
    assert share_of_window(0.8, query, 10_000) == 0.8 / 2**halvings
    assert share_of_window(0.8, query // 10 + 1, 1000) == 0.8 / 2 ** sum(
        (query // 10 + 1) * 10 > bound for bound in (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
    )

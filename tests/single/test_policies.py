"""Policies against the distributions of torch."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Categorical, Independent, Normal, TransformedDistribution
from torch.distributions.transforms import TanhTransform

from hvd_train.agents import noise
from hvd_train.agents.policies import policy_for
from hvd_train.data.environments.base import Actions
from hvd_train.models import squashed

OUTPUTS = torch.randn(500, 4, generator=torch.Generator().manual_seed(1)).double()
NUMBERS = Actions(low=(-2.0, 0.0), high=(2.0, 10.0))


def test_choices_are_those_of_a_categorical_distribution() -> None:
    policy, expected = policy_for(Actions(choices=4)), Categorical(logits=OUTPUTS)
    actions = torch.arange(500) % 4
    torch.testing.assert_close(policy.log_probability(OUTPUTS, actions), expected.log_prob(actions))
    torch.testing.assert_close(policy.assess(OUTPUTS, actions)[1], expected.entropy())
    assert torch.equal(policy.mode(OUTPUTS), expected.probs.argmax(-1))


def test_choices_are_drawn_as_often_as_they_are_probable() -> None:
    policy, steps = policy_for(Actions(choices=4)), 20_000
    drawn = noise.draw(policy.noise, 1, 0, [0], steps)[:, 0]
    counts = torch.bincount(policy.sample(OUTPUTS[:1].expand(steps, 4), drawn), minlength=4) / steps
    torch.testing.assert_close(counts.double(), OUTPUTS[0].softmax(0), atol=0.015, rtol=0)


def test_numbers_are_those_of_a_normal_distribution_in_units_of_half_the_range() -> None:
    policy = policy_for(NUMBERS)
    expected = Independent(Normal(OUTPUTS[:, :2], OUTPUTS[:, 2:].clamp(-5, 2).exp()), 1)
    scaled = torch.randn(500, 2, generator=torch.Generator().manual_seed(2)).double()
    actions = torch.tensor([0.0, 5.0]) + torch.tensor([2.0, 5.0]) * scaled
    torch.testing.assert_close(policy.log_probability(OUTPUTS, actions), expected.log_prob(scaled))
    torch.testing.assert_close(policy.assess(OUTPUTS, actions)[1], expected.entropy())
    torch.testing.assert_close(policy.sample(OUTPUTS, torch.zeros(500, 2)), policy.mode(OUTPUTS))


def test_squashed_numbers_have_the_density_of_a_transformed_normal_distribution() -> None:
    """Where atanh, which torch's density takes, does not round: outputs are small."""
    drawn, outputs = torch.randn(500, 2, generator=torch.Generator().manual_seed(3)).double(), OUTPUTS / 4
    action, density = squashed.sample(outputs, drawn)
    normal = Normal(outputs[:, :2], outputs[:, 2:].exp())
    expected = Independent(TransformedDistribution(normal, [TanhTransform(cache_size=0)]), 1)
    torch.testing.assert_close(density, expected.log_prob(action), rtol=1e-6, atol=1e-6)
    assert torch.equal(squashed.mode(outputs), outputs[:, :2].tanh())


def test_the_density_of_squashed_numbers_integrates_to_one() -> None:
    """The integral over actions, by the noise that leads to each of them."""
    drawn = torch.linspace(-8, 8, 20_001, dtype=torch.float64).unsqueeze(1)
    action, density = squashed.sample(torch.tensor([[0.3, -0.5]], dtype=torch.float64).expand(len(drawn), 2), drawn)
    assert float(torch.trapezoid(density.exp(), action.squeeze(1))) == pytest.approx(1, abs=1e-5)


def test_squashed_densities_stay_finite_where_tanh_rounds_to_one() -> None:
    outputs = torch.tensor([[30.0, 0.0]], requires_grad=True)
    action, density = squashed.sample(outputs, torch.zeros(1, 1))
    density.sum().backward()
    assert float(action.detach()) == 1
    assert torch.isfinite(density).all()
    assert torch.isfinite(outputs.grad).all()  # type: ignore[arg-type]

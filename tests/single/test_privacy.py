"""Differential privacy and secure aggregation, without ranks."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Iterable
from pathlib import Path
from statistics import NormalDist

import pytest
import torch
from torch import Tensor

from hvd_train.comm.engines.single import SingleCommunicator
from hvd_train.errors import UserError
from hvd_train.sync.clients import gaussian, ledger, masks, merges
from hvd_train.sync.clients.accountant import Accountant
from hvd_train.sync.clients.merges import PlainSum, PrivateMean
from hvd_train.sync.clients.round_model import _flat
from hvd_train.sync.clients.sample import Sample
from tests.bodies.federated import uniform


def spent(*rounds: tuple[float, float, int]) -> Accountant:
    accountant = Accountant()
    for noise, fraction, count in rounds:
        for _ in range(count):
            accountant.add(noise, fraction)
    return accountant


def exact_delta(epsilon: float, noise: float) -> float:
    """Return epsilon of one Gaussian mechanism (Balle and Wang, arXiv 1805.06530, theorem 8)."""
    phi = NormalDist().cdf
    half, tilt = 1 / (2 * noise), epsilon * noise
    return phi(half - tilt) - math.exp(epsilon) * phi(-half - tilt)


def renyi(alpha: int, fraction: float, noise: float) -> float:
    """Return the Renyi divergence of one sampled Gaussian (arXiv 1908.10530, section 3.3)."""
    logs = [
        math.log(math.comb(alpha, k) * (1 - fraction) ** (alpha - k) * fraction**k) + (k * k - k) / (2 * noise**2)
        for k in range(alpha + 1)
    ]
    return (max(logs) + math.log(math.fsum(math.exp(x - max(logs)) for x in logs))) / (alpha - 1)


@pytest.mark.parametrize(("noise", "rounds"), [(1.0, 1), (2.0, 10), (5.0, 100), (0.5, 3)])
def test_epsilon_of_all_clients_is_that_of_one_gaussian(noise: float, rounds: int) -> None:
    """Noise s in T rounds equals s / sqrt(T) in one: epsilon is exact to a seventh, from above."""
    together, delta = noise / math.sqrt(rounds), 1e-5
    epsilon = spent((noise, 1.0, rounds)).epsilon(delta)
    assert exact_delta(epsilon, together) <= delta
    assert exact_delta(epsilon / 1.15, together) > delta


@pytest.mark.parametrize(("noise", "fraction", "rounds"), [(1.0, 0.1, 50), (1.5, 0.5, 20), (4.0, 0.01, 1000)])
def test_epsilon_of_a_sample_is_that_of_the_formula(noise: float, fraction: float, rounds: int) -> None:
    """Integer orders give almost the same epsilon; other orders make it smaller."""
    delta = 1e-5
    by_order = [
        rounds * renyi(a, fraction, noise) - math.log(delta * a) / (a - 1) + math.log(1 - 1 / a) for a in range(2, 60)
    ]
    epsilon = spent((noise, fraction, rounds)).epsilon(delta)
    assert 0.97 * min(by_order) < epsilon <= min(by_order) * (1 + 1e-9)


def test_epsilon_against_published_figures() -> None:
    """256 of 60000 samples, noise 1.3, 20 epochs, delta 1e-5: 1.34 in arXiv 1911.11607."""
    epsilon = spent((1.3, 256 / 60000, 4688)).epsilon(1e-5)
    assert 0.8 * 1.34 < epsilon < 1.34


def test_epsilon_against_another_accountant() -> None:
    """Composition of privacy loss distributions is tight; Renyi divergences may be a bit above."""
    from opacus.accountants import PRVAccountant

    other = PRVAccountant()
    other.history = [(1.1, 0.25, 40)]
    tight = other.get_epsilon(1e-5, eps_error=0.01, delta_error=1e-8)
    assert tight - 0.01 <= spent((1.1, 0.25, 40)).epsilon(1e-5) < 1.15 * tight


def test_rounds_of_other_noise_add_up() -> None:
    mixed = spent((1.0, 0.5, 3), (2.0, 0.5, 4), (1.0, 0.5, 1))
    assert mixed.spent == [(1.0, 0.5, 3), (2.0, 0.5, 4), (1.0, 0.5, 1)]
    assert mixed.rounds == 8
    assert spent((1.0, 0.5, 4)).epsilon(1e-5) < mixed.epsilon(1e-5) < spent((1.0, 0.5, 8)).epsilon(1e-5)
    assert spent().epsilon(1e-5) == 0


@pytest.mark.parametrize(("noise", "fraction", "rounds"), [(2.0, 0.3, 10), (1.0, 0.5, 3)])
def test_who_knows_the_sample_is_told_an_epsilon_without_it(noise: float, fraction: float, rounds: int) -> None:
    """It is epsilon of rounds with every client, larger than that of sampled rounds."""
    from opacus.accountants import RDPAccountant

    accountant, other = spent((noise, fraction, rounds)), RDPAccountant()
    other.history = [(noise, 1.0, rounds)]
    known = accountant.epsilon(1e-5, sampled=False)
    assert known == pytest.approx(other.get_epsilon(1e-5), rel=0.01)
    assert exact_delta(known, noise / math.sqrt(rounds)) <= 1e-5 < exact_delta(known / 1.15, noise / math.sqrt(rounds))
    assert known > accountant.epsilon(1e-5)


def test_a_ledger_outlives_its_run_and_knows_what_was_put_aside(tmp_path: Path) -> None:
    """Ledgers of attempts that were moved aside, and of the resumed run, count too."""
    run, aside, branch = tmp_path / "run", tmp_path / "run.lost-1", tmp_path / "branch"
    first: ledger.Processes = {"a": [(1.0, 0.5, 2), (2.0, 0.5, 1)]}
    assert ledger.read(run, None) == {}
    ledger.write(aside, first)
    ledger.write(tmp_path / "run.lost-1-of-another", {"x": [(9.0, 1.0, 9)]})
    ledger.write(tmp_path / "run2.lost-1", {"x": [(9.0, 1.0, 9)]})
    assert ledger.read(run, None) == first
    ledger.write(run, {**first, "b": [(1.0, 0.5, 4)]})
    assert ledger.read(run, None) == {**first, "b": [(1.0, 0.5, 4)]}
    for source in (run, run / "checkpoints" / "step-00000004"):
        assert ledger.read(branch, source) == ledger.read(run, None)
    ledger.write(branch, {"b": [(1.0, 0.5, 3)], "c": [(1.0, 0.5, 1)]})
    assert ledger.read(branch, run) == {**first, "b": [(1.0, 0.5, 4)], "c": [(1.0, 0.5, 1)]}


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"released": {"a": [[1, 2]]}}', '{"released": [1]}', "null"])
def test_a_damaged_ledger_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / ledger.NAME).write_text(text)
    with pytest.raises(UserError, match=rf"{ledger.NAME}: expected the record of noisy rounds"):
        ledger.read(tmp_path, None)


def test_a_ledger_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger.write(tmp_path, {"a": [(1.0, 0.5, 2)]})
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("the machine goes down")))
    with pytest.raises(OSError, match="goes down"):
        ledger.write(tmp_path, {"a": [(1.0, 0.5, 3)]})
    assert ledger.read(tmp_path, None) == {"a": [(1.0, 0.5, 2)]}


def test_a_missing_accountant_is_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opacus", None)
    with pytest.raises(UserError, match=r"needs opacus.*pip install -e '\.\[privacy\]'"):
        Accountant()


def test_a_missing_cryptography_is_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "Crypto.Cipher", None)
    monkeypatch.delitem(sys.modules, "hvd_train.sync.clients.masks")
    with pytest.raises(UserError, match=r"needs pycryptodome.*pip install -e '\.\[privacy\]'"):
        import hvd_train.sync.clients.masks  # noqa: F401


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_clipping_bounds_what_one_client_changes(dtype: torch.dtype) -> None:
    """With and without a client, the mean differs by clip / expected at most."""
    for length in (0.0, 1e-30, 0.5, 1.0, 3.0, 1e30):
        update = torch.randn(1000, generator=torch.Generator().manual_seed(1), dtype=dtype)
        update *= length / update.norm()
        clipped = update.clone()
        gaussian.clip_(clipped, 1.0)
        merge = PrivateMean(PlainSum(SingleCommunicator()), 1, 0.0, expected=4.0)
        change = merge(clipped, 1, [0]) - merge(clipped, 0, [0])
        assert float(change.double().norm()) <= 1 / 4 * (1 + 1e-6)
        if length < 1:
            assert torch.equal(clipped, update)


def test_noise_is_added_before_it_is_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank sends the rounded sum of update and noise: its lowest digits are those of the sum."""
    draw = torch.full((1,), 2.0**-25 + 2.0**-50, dtype=torch.float64)
    monkeypatch.setattr(merges, "gaussian", lambda numel, deviation: draw)
    merge = PrivateMean(PlainSum(SingleCommunicator()), 1, 1.0, expected=1.0)
    sent = merge(torch.tensor([1 - 2.0**-23]), 1, [0])
    assert sent.dtype == torch.float32
    assert float(sent) == float((torch.tensor([1 - 2.0**-23]).double() + draw).float())


def test_updates_of_halves_are_clipped_and_hidden_in_float32() -> None:
    """In bfloat16 an update could be 0.4 % longer than the clipping norm."""
    tensors = [torch.ones(100, dtype=torch.bfloat16), torch.ones(2, 2, dtype=torch.float16), torch.ones(3)]
    flat = _flat(tensors)
    assert (flat.dtype, flat.shape) == (torch.float32, (107,))
    assert _flat(tensors[:1]).dtype == torch.float32
    assert _flat([torch.ones(2, dtype=torch.float64), *tensors]).dtype == torch.float64


@pytest.mark.parametrize("numel", [0, 1, 2, 100_001])
def test_noise_is_normal(numel: int) -> None:
    from scipy.stats import kstest

    noise = gaussian.gaussian(numel, 2.0)
    assert noise.shape == (numel,)
    if numel > 2:
        assert kstest(noise.numpy(), "norm", args=(0, 2.0)).pvalue > 1e-7
        halves = noise[: numel // 2], noise[numel // 2 : numel - 1]
        assert abs(float(torch.corrcoef(torch.stack(halves))[0, 1])) < 6 / math.sqrt(numel / 2)


def test_samples_are_what_the_accountant_assumes() -> None:
    """Poisson samples have variance q (1 - q) K; other samples have a fixed size."""
    poisson, fixed = (Sample(10, 0.3, 7, poisson=p) for p in (True, False))
    drawn = torch.zeros(4000, 10)
    for number in range(len(drawn)):
        drawn[number, poisson.of(number)] = 1
    assert float((drawn.mean(0) - 0.3).abs().max()) < 6 * math.sqrt(0.21 / 4000)
    assert float(drawn.sum(1).var()) == pytest.approx(2.1, rel=0.15)
    assert float((drawn.T.corrcoef() - torch.eye(10)).abs().max()) < 6 / math.sqrt(4000)
    assert {len(fixed.of(number)) for number in range(100)} == {3}
    assert len({tuple(fixed.of(number)) for number in range(100)}) > 50
    assert fixed.of(5) == Sample(10, 0.3, 7).of(5) != Sample(10, 0.3, 8).of(5)
    assert [Sample(10, q, 0).size for q in (0.01, 0.25, 1.0)] == [1, 2, 10]


def vectors(clients: list[int]) -> dict[int, Tensor]:
    made = {c: torch.randn(20_000, dtype=torch.float64, generator=torch.Generator().manual_seed(c)) for c in clients}
    return {c: masks.encode(v) for c, v in made.items()}


def total(xs: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(xs)).sum(0)


@pytest.mark.parametrize("clients", [[0, 1], [0, 1, 2, 3], [2, 5, 11, 3]])
def test_masks_cancel_in_the_sum_of_all_and_in_no_other(clients: list[int]) -> None:
    """This holds for zero vectors, and for a client that subtracts its own masks."""
    secrets = {c: masks.draw() for c in clients}
    keys = {c: masks.advertise(secrets[c]) for c in clients}
    plain = vectors(clients)
    plain[clients[-1]].zero_()
    masked = {c: masks.mask(plain[c], secrets[c], c, keys) for c in clients}
    assert torch.equal(total(masked.values()), total(plain.values()))
    curious, *others = clients
    own = {c: masked[c] + masks.mask(plain[c], secrets[curious], curious, {c: keys[c]}) - plain[c] for c in others}
    for count in range(1, len(others)):
        for some in itertools.combinations(others, count):
            assert uniform(total(masked[c] for c in some))
            assert uniform(total(own[c] for c in some)), f"{curious} reads a sum of {some}"
    assert torch.equal(total(own.values()), total(plain[c] for c in others))


def test_no_mask_is_used_twice() -> None:
    vector = torch.zeros(20_000, dtype=torch.int64)
    secrets = [[masks.draw() for _ in range(2)] for _ in range(3)]
    rounds = [
        masks.mask(vector, mine, 0, dict(enumerate(map(masks.advertise, [mine, *its]))))
        for mine, *its in [[a, b] for a, b in secrets]
    ]
    assert all(uniform(a - b) for a, b in itertools.combinations(rounds, 2))


def test_fixed_point_is_exact_to_its_last_digit_and_knows_its_range() -> None:
    x = torch.tensor([0.0, 1.0, -1.0, 2.0**-24, 3.25, -(2.0**30)], dtype=torch.float64)
    assert torch.equal(masks.decode(masks.encode(x)), x)
    y = torch.randn(1000, dtype=torch.float64)
    assert float((masks.decode(masks.encode(y)) - y).abs().max()) <= 2.0**-25
    edge = torch.tensor([2.0**62 / masks.SCALE / 4])
    assert not masks.fits(edge, 4)
    assert masks.fits(edge * 0.999, 4)
    assert not masks.fits(torch.tensor([math.nan]), 1)
    assert not masks.fits(torch.tensor([math.inf]), 1)

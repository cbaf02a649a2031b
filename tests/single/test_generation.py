"""Sequences that a model writes: search and sampling against exact results, and cached keys."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from hvd_train.compute.precision import Precision
from hvd_train.data.spec import DataSpec
from hvd_train.errors import UserError
from hvd_train.models.zoo import seq2seq, transformer
from hvd_train.trained.generating.decoding import Decoding
from hvd_train.trained.generating.scores import Recomputed
from hvd_train.trained.generating.search import Search
from hvd_train.trained.generating.searching import (
    Generated,
    Limits,
    beam,
    distribution,
    drawn,
    generate,
    greedy,
    length_factor,
    sampled,
    uniform_numbers,
)
from hvd_train.trained.generating.translating import Translate

END = 2
VOCABULARY = 4
EVERY_SEARCH = (Search(), Search(beams=3), Search(sample=True, temperature=1.5, top_p=0.9))


def random_scores(tokens: Tensor, parents: Tensor | None = None, *, spread: float = 1.5) -> Tensor:
    """Scores that depend on all tokens of a row, but on nothing else."""
    rows = []
    for row in tokens.tolist():
        seed = hash(tuple(row)) % 2**31
        rows.append(spread * torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(seed)))
    return torch.stack(rows)


def log_probability(first: list[int], tokens: tuple[int, ...], scores: Any = random_scores) -> float:
    total = 0.0
    for i, token in enumerate(tokens):
        total += float(scores(torch.tensor([[*first, *tokens[:i]]])).double().log_softmax(-1)[0, token])
    return total


def ended(steps: int, least: int = 0) -> list[tuple[int, ...]]:
    """All sequences of at most `steps` tokens, the last of which is the end."""
    others = [token for token in range(VOCABULARY) if token != END]
    return [(*body, END) for n in range(least, steps) for body in itertools.product(others, repeat=n)]


@pytest.mark.parametrize("penalty", [0.0, 0.6, 2.0])
@pytest.mark.parametrize("least", [0, 1])
def test_a_beam_that_holds_all_sequences_finds_the_best_one(penalty, least):
    first = torch.tensor([[0, 1], [3, 1], [1, 1]])
    found = beam(random_scores, first, Limits(4, END, least), VOCABULARY**4, penalty)
    for prompt, one in zip(first.tolist(), found, strict=True):
        scores = partial(_without_early_end, least=least, start=len(prompt))
        sums = {tokens: log_probability(prompt, tokens, scores) for tokens in ended(4, least)}
        best = max(sums, key=lambda tokens: sums[tokens] / ((5 + len(tokens)) / 6) ** penalty)
        assert one.ended
        assert (*one.tokens, END) == best
        assert one.log_probability == pytest.approx(sums[best], abs=1e-9)


def _without_early_end(tokens: Tensor, least: int, start: int) -> Tensor:
    found = random_scores(tokens)
    if tokens.shape[1] - start < least:
        found[:, END] = -torch.inf
    return found


def test_a_penalty_prefers_longer_sequences_as_wu_et_al_define():
    assert length_factor(1, 0.6) == 1.0
    assert length_factor(7, 1.0) == 2.0
    assert length_factor(9, 0.0) == 1.0
    first = torch.randint(VOCABULARY, (40, 6), generator=torch.Generator().manual_seed(1))
    lengths = [
        sum(len(one.tokens) for one in beam(random_scores, first, Limits(5, END), 300, penalty))
        for penalty in (0, 1, 4)
    ]
    assert lengths[0] < lengths[1] < lengths[2]


def test_a_beam_is_at_least_as_probable_as_greedy_and_greedy_takes_the_largest_score():
    first = torch.randint(VOCABULARY, (20, 5), generator=torch.Generator().manual_seed(0))
    wide = beam(random_scores, first, Limits(5, END), 50, 0.0)
    for prompt, one, best in zip(first.tolist(), greedy(random_scores, first, Limits(5, END)), wide, strict=True):
        tokens = list(prompt)
        for token in [*one.tokens, *([END] if one.ended else [])]:
            assert int(random_scores(torch.tensor([tokens])).argmax()) == token
            tokens.append(token)
        assert best.log_probability >= one.log_probability - 1e-9 or not one.ended


@pytest.mark.parametrize("search", EVERY_SEARCH, ids=["greedy", "beam", "sample"])
def test_a_row_does_not_depend_on_the_other_rows(search):
    first = torch.randint(VOCABULARY, (12, 4), generator=torch.Generator().manual_seed(3))
    limits = Limits(6, END)
    together = generate(random_scores, first, limits, search)
    assert len({len(one.tokens) for one in together}) > 2
    for i in range(len(first)):
        assert generate(random_scores, first[i : i + 1], limits, search) == [together[i]]
    order = torch.randperm(len(first), generator=torch.Generator().manual_seed(0))
    assert generate(random_scores, first[order], limits, search) == [together[i] for i in order.tolist()]


@pytest.mark.parametrize("search", EVERY_SEARCH, ids=["greedy", "beam", "sample"])
def test_without_an_end_sequences_have_all_steps(search):
    def never(tokens: Tensor, parents: Tensor | None) -> Tensor:
        found = random_scores(tokens)
        found[:, END] = -torch.inf
        return found

    for end, scores in ((END, never), (None, random_scores)):
        (one,) = generate(scores, torch.tensor([[1]]), Limits(5, end), search)
        assert (len(one.tokens), one.ended) == (5, False)
    assert generate(random_scores, torch.tensor([[1]]), Limits(0, END), search) == [Generated([], 0.0, False)]


@pytest.mark.parametrize("search", EVERY_SEARCH, ids=["greedy", "beam", "sample"])
def test_an_end_that_is_best_at_once_gives_no_empty_text_if_one_token_is_the_least(search):
    def at_once(tokens: Tensor, parents: Tensor | None) -> Tensor:
        found = random_scores(tokens)
        found[:, END] += 50
        return found

    first = torch.tensor([[0], [1]])
    assert [one.tokens for one in generate(at_once, first, Limits(6, END), search)] == [[], []]
    found = generate(at_once, first, Limits(6, END, 1), search)
    assert [(len(one.tokens), one.ended) for one in found] == [(1, True)] * 2


def test_the_distribution_is_that_of_temperature_top_k_and_top_p():
    scores = torch.tensor([0.5, 0.2, 0.15, 0.1, 0.05]).log()[None]
    assert distribution(scores)[0].tolist() == pytest.approx([0.5, 0.2, 0.15, 0.1, 0.05])
    squares = [0.25, 0.04, 0.0225, 0.01, 0.0025]
    assert distribution(scores, 0.5)[0].tolist() == pytest.approx([s / sum(squares) for s in squares])
    assert distribution(scores, top_k=2)[0].tolist() == pytest.approx([5 / 7, 2 / 7, 0, 0, 0])
    assert distribution(scores, top_p=0.69)[0].tolist() == pytest.approx([5 / 7, 2 / 7, 0, 0, 0])
    assert distribution(scores, top_p=0.71)[0].tolist() == pytest.approx([50 / 85, 20 / 85, 15 / 85, 0, 0])
    assert distribution(scores, top_p=1e-9)[0].tolist() == [1, 0, 0, 0, 0]
    assert distribution(scores, top_k=99, top_p=1.0)[0].tolist() == pytest.approx([0.5, 0.2, 0.15, 0.1, 0.05])
    assert distribution(scores, top_k=3, top_p=0.8)[0].tolist() == pytest.approx([5 / 7, 2 / 7, 0, 0, 0])
    shuffled = distribution(scores[:, [3, 0, 4, 2, 1]], top_k=2)
    assert shuffled[0].tolist() == pytest.approx([0, 5 / 7, 0, 0, 2 / 7])


def test_tokens_are_drawn_as_often_as_their_probabilities_say():
    chances = torch.tensor([[0.0, 0.5, 0.2, 0.0, 0.3, 0.0]], dtype=torch.float64)
    number = 10_000
    uniform = (torch.arange(number, dtype=torch.float64) + 0.5) / number
    counts = drawn(chances.expand(number, -1), uniform).bincount(minlength=6)
    assert counts.tolist() == [0, 5000, 2000, 0, 3000, 0]
    edges = torch.tensor([0.0, 1 - 2**-53])
    assert drawn(chances.expand(2, -1), edges).tolist() == [1, 4]


def test_sampled_sequences_have_the_frequencies_of_the_model():
    first, number = torch.tensor([[1, 0]]), 20_000
    uniform = torch.rand(number, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    table = {row: random_scores(torch.tensor([row])) for row in [(1, 0), *((1, 0, i) for i in range(VOCABULARY))]}

    def scores(tokens: Tensor, parents: Tensor | None) -> Tensor:
        return torch.cat([table[tuple(row)] for row in tokens.tolist()])

    found = sampled(scores, first.expand(number, -1), Limits(2, END), uniform, Search(sample=True))
    for tokens in ended(2):
        expected = float(torch.tensor(log_probability([1, 0], tokens)).exp())
        share = sum(one.ended and (*one.tokens, END) == tokens for one in found) / number
        assert abs(share - expected) < 4 * (expected * (1 - expected) / number) ** 0.5


def test_the_random_numbers_of_a_text_depend_on_the_seed_and_the_text_only():
    one = uniform_numbers([[1, 2], [3]], 4, 7)
    assert torch.equal(uniform_numbers([[3]], 6, 7)[0, :4], one[1])
    assert not torch.equal(uniform_numbers([[3]], 4, 8)[0], one[1])
    assert not torch.equal(one[0], one[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beams": 0}, "--beams: 0, expected at least 1"),
        ({"beams": 2, "sample": True}, "exclude each other"),
        ({"temperature": 0.0, "sample": True}, "--temperature: 0.0, expected a number above 0"),
        ({"temperature": 0.5}, "--temperature: it is for sampling; add --sample"),
        ({"top_k": 0, "sample": True}, "--top-k: 0, expected at least 1"),
        ({"top_p": 1.5, "sample": True}, "--top-p: 1.5, expected a number above 0, at most 1"),
        ({"top_p": float("nan"), "sample": True}, "--top-p: nan, expected"),
        ({"length_penalty": -1.0}, "--length-penalty: -1.0, expected a number from 0"),
    ],
)
def test_options_that_make_no_search_are_refused(options, message):
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        Search(**options)


SPEC = DataSpec((24,), 40, "seq2seq")
PRECISION = Precision("fp64", torch.device("cpu"))


def pair_model() -> Decoding:
    torch.manual_seed(0)
    return Decoding(seq2seq.create(SPEC, layers=2, width=16, heads=2).double().eval(), PRECISION, SPEC)


def sources(number: int = 7) -> list[Tensor]:
    draw = torch.Generator().manual_seed(5)
    return [torch.randint(40, (int(torch.randint(1, 12, (), generator=draw)),), generator=draw) for _ in range(number)]


@pytest.mark.parametrize("search", EVERY_SEARCH, ids=["greedy", "beam", "sample"])
def test_cached_keys_change_nothing_for_pairs(search):
    decoding = pair_model()

    def whole(inputs: Any) -> Recomputed:
        return Recomputed(decoding._outputs, inputs)

    cached, uncached = (Translate(start, search, 0, 3, 20)(sources()) for start in (decoding, whole))
    assert [one.tokens for one in cached] == [one.tokens for one in uncached]
    assert [one.log_probability for one in cached] == pytest.approx([one.log_probability for one in uncached], abs=1e-9)


@pytest.mark.parametrize("search", EVERY_SEARCH, ids=["greedy", "beam", "sample"])
def test_a_padded_batch_translates_as_each_source_alone(search):
    translate = Translate(pair_model(), search, 0, 3, 20)
    together = translate(sources())
    for source, one in zip(sources(), together, strict=True):
        (alone,) = translate([source])
        assert alone.tokens == one.tokens
        assert alone.log_probability == pytest.approx(one.log_probability, abs=1e-9)


@pytest.mark.parametrize("search", EVERY_SEARCH, ids=["greedy", "beam", "sample"])
def test_cached_keys_change_nothing_for_a_language_model_beyond_its_context(search):
    spec = DataSpec((12,), 40, "language")
    torch.manual_seed(0)
    decoding = Decoding(transformer.create(spec, layers=2, width=16, heads=2).double().eval(), PRECISION, spec)
    first = torch.randint(40, (4, 5))
    cached = generate(decoding(None), first, Limits(20), search)
    uncached = generate(Recomputed(decoding._outputs, window=12), first, Limits(20), search)
    assert [one.tokens for one in cached] == [one.tokens for one in uncached]
    assert [one.log_probability for one in cached] == pytest.approx([one.log_probability for one in uncached], abs=1e-9)


def test_a_padded_batch_of_pairs_gives_the_outputs_and_gradients_of_single_pairs():
    torch.manual_seed(0)
    model = seq2seq.create(SPEC, layers=2, width=16, heads=2).double().eval()
    texts, targets = sources(), [torch.cat([torch.zeros(1, dtype=torch.int64), one]) for one in reversed(sources())]
    pad = partial(torch.nn.utils.rnn.pad_sequence, batch_first=True)
    mask = pad([torch.ones_like(text) for text in texts])
    whole = model(pad(texts), pad(targets), mask)
    alone = [model(text[None], target[None])[0] for text, target in zip(texts, targets, strict=True)]
    for outputs, expected in zip(whole, alone, strict=True):
        torch.testing.assert_close(outputs[: len(expected)], expected, atol=1e-12, rtol=0)
    summed = sum(outputs[: len(target)].square().sum() for outputs, target in zip(whole, targets, strict=True))
    gradients = [
        torch.autograd.grad(loss, list(model.parameters())) for loss in (summed, sum(o.square().sum() for o in alone))
    ]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-9)


def test_a_decoder_sees_no_later_token():
    torch.manual_seed(0)
    model = seq2seq.create(SPEC, layers=1, width=16, heads=2).double().eval()
    source, target = torch.randint(40, (1, 6)), torch.randint(40, (1, 8))
    other = target.clone()
    other[0, 5] = (other[0, 5] + 1) % 40
    first, second = model(source, target), model(source, other)
    assert torch.equal(first[:, :5], second[:, :5])
    assert not torch.allclose(first[:, 5:], second[:, 5:])


class OfLibrary(torch.nn.Module):
    """Holds a model of transformers, as `models/huggingface` does."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.inner = model

    def forward(self, *tokens: Tensor, **inputs: Tensor) -> Any:
        return self.inner(*tokens, **inputs)


@pytest.mark.filterwarnings("ignore")
def test_the_cache_of_transformers_changes_nothing():
    library = pytest.importorskip("transformers")
    torch.manual_seed(0)
    of_pairs = library.T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    of_text = library.GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2, n_positions=24)
    translator = Decoding(OfLibrary(library.T5ForConditionalGeneration(of_pairs)).double().eval(), PRECISION, SPEC)
    spec = DataSpec((8,), 40, "language")
    writer = Decoding(OfLibrary(library.GPT2LMHeadModel(of_text)).double().eval(), PRECISION, spec)
    first = torch.randint(40, (4, 5))
    for search in EVERY_SEARCH:
        starts = (translator, lambda inputs: Recomputed(translator._outputs, inputs))
        cached, uncached = (Translate(start, search, 0, 1, 12)(sources()) for start in starts)
        assert [one.tokens for one in cached] == [one.tokens for one in uncached]
        cached, uncached = (
            generate(scores, first, Limits(6, 1), search)
            for scores in (writer(None), Recomputed(writer._outputs, window=8))
        )
        assert [one.tokens for one in cached] == [one.tokens for one in uncached]
    assert writer._cached(None) is not None

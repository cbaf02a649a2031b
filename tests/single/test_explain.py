"""What `ddl explain` computes: exact attributions of known functions, and every kind of data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cli.trained.explain import page, report, save
from hvd_train.comm.communicator import Communicator
from hvd_train.comm.engines.single import create as single
from hvd_train.config import plugins
from hvd_train.data.spec import DataSpec
from hvd_train.errors import UserError
from hvd_train.models.zoo import transformer
from hvd_train.rank.logs import Output
from hvd_train.rank.task import TaskContext
from hvd_train.saved.run import find_run
from hvd_train.trained.explaining import groups, memory
from hvd_train.trained.explaining.attention_weights import recorded, weights_of
from hvd_train.trained.explaining.completeness import total
from hvd_train.trained.explaining.explainer import Explainer, Known
from hvd_train.trained.explaining.method import Attribution, Question
from hvd_train.trained.explaining.methods.attention import rollout
from hvd_train.trained.explaining.sanity import randomised, rank_correlation
from hvd_train.trained.explaining.subject import Field, Subject, fields
from hvd_train.trained.tasks.explain import METHODS, create
from tests.bodies import trained
from tests.engines import threads

ALL = plugins.names(METHODS)
TABLE = DataSpec((3,), 2, "classification")
WEIGHTS = torch.tensor([[1.0, -2.0, 0.5], [0.0, 1.0, 3.0]])


def explained(run: Path, folder: Path, comm: Communicator | None = None, **options: Any) -> dict[str, Any]:
    """Return what the task finds, as JSON would hold it."""
    found, output = find_run(run), Output()
    folder.mkdir(exist_ok=True)
    result = create(**options).run(TaskContext(found.config, comm or single(), found.checkpoint, folder, output))
    return json.loads(json.dumps(result))  # type: ignore[no-any-return]


def question(score: Callable[..., Tensor], x: Tensor, rows: int = 100, parts: Tensor | None = None) -> Question:
    numbered = torch.arange(x.numel()).view_as(x) if parts is None else parts
    return Question(score, (x,), (torch.zeros_like(x),), (numbered,), rows)


def ask(method: str, *arguments: Any, **more: Any) -> Attribution:
    found: Attribution = plugins.create(METHODS, method)(question(*arguments, **more))
    return found


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("integrated_gradients", WEIGHTS[0] * torch.tensor([2.0, 1.0, -4.0])),
        ("occlusion", WEIGHTS[0] * torch.tensor([2.0, 1.0, -4.0])),
        ("shap", WEIGHTS[0] * torch.tensor([2.0, 1.0, -4.0])),
        ("saliency", WEIGHTS[0].abs()),
    ],
)
def test_attributions_of_a_linear_function_are_its_terms(method: str, expected: Tensor) -> None:
    x = torch.tensor([[2.0, 1.0, -4.0]])
    found = ask(method, lambda x: x @ WEIGHTS[0], x)
    torch.testing.assert_close(found.values[0][0], expected)


@pytest.mark.parametrize("method", ["integrated_gradients", "shap"])
def test_a_product_is_shared_by_its_factors(method: str) -> None:
    torch.manual_seed(0)
    found = ask(method, lambda x: x[:, 0] * x[:, 1], torch.tensor([[2.0, 3.0, 5.0]])).values[0][0]
    assert total([found]) == pytest.approx(6, rel=1e-6)
    assert found.tolist() == pytest.approx([3, 3, 0], abs=1.5 if method == "shap" else 1e-4)


def test_parts_are_removed_together_and_share_their_value() -> None:
    parts = torch.tensor([[0, 0, 1]])
    found = ask("occlusion", lambda x: x[:, 0] * x[:, 1] + x[:, 2], torch.tensor([[2.0, 3.0, 5.0]]), parts=parts)
    assert found.values[0].tolist() == [[3, 3, 5]]


def test_integrated_gradients_resolve_a_step_beside_the_baseline() -> None:
    """A normalised input changes within 1e-3 of the line, which equal steps miss."""
    x = torch.tensor([[3.0, -1.0]])
    found = ask("integrated_gradients", lambda x: (x / (x.norm(dim=1, keepdim=True) + 1e-3))[:, 0], x)
    assert total(found.values) == pytest.approx(3 / 10**0.5, rel=0.01)
    assert found.steps is not None
    assert 32 < found.steps < 2048


def test_a_batch_has_no_more_rows_than_memory_allows() -> None:
    seen: list[int] = []

    def score(x: Tensor) -> Tensor:
        seen.append(len(x))
        return x @ WEIGHTS[0]

    for method in ("integrated_gradients", "occlusion", "shap"):
        ask(method, score, torch.ones(1, 3), rows=2)
    assert max(seen) == 2


def test_rows_follow_the_bytes_of_all_layers() -> None:
    model = nn.Sequential(nn.Linear(3, 100), nn.Sequential(nn.ReLU()))
    assert memory.bytes_of_one(model, model, (torch.zeros(1, 3),)) == 2 * 4 * (3 + 100 + 100)
    assert [memory.rows(size) for size in (1, memory.BUDGET // 5, 2 * memory.BUDGET)] == [memory.MOST, 5, 1]


def test_rank_correlation_is_that_of_scipy() -> None:
    from scipy.stats import spearmanr

    draw = torch.Generator().manual_seed(0)
    x, y = (torch.randint(5, (40,), generator=draw).float() for _ in range(2))
    assert rank_correlation(x, y) == pytest.approx(spearmanr(x, y).statistic, abs=1e-12)
    assert rank_correlation(x, torch.ones(40)) is None


def test_random_weights_are_the_values_of_each_tensor_in_another_order() -> None:
    model = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6))
    other = randomised(model, 0)
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one.flatten().sort().values, two.flatten().sort().values)
    assert not torch.equal(model[0].weight, other[0].weight)
    assert torch.equal(other[0].weight, randomised(model, 0)[0].weight)


def test_pictures_divide_into_squares_and_columns_into_their_inputs() -> None:
    assert groups.tiles((3, 16, 8))[0, :, ::2, ::2].flatten(1).tolist() == [list(range(32))] * 3
    assert groups.columns([1, 3, 1]).tolist() == [[0, 1, 1, 1, 2]]
    assert groups.positions((2, 3)).tolist() == [[[0, 0, 0], [1, 1, 1]]]
    assert groups.stretches((1, 130)).max() == 43
    assert [n.tolist() for n in groups.numbered([torch.tensor([0, 1]), torch.tensor([0])])] == [[0, 1], [2]]


class Mixed(nn.Module):
    """Takes numbers and two texts, which one layer embeds; a mask stays as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4, padding_idx=0)

    def forward(self, x: Tensor, first: Tensor, second: Tensor, mask: Tensor) -> dict[str, Tensor]:
        texts = (self.embed(first) * mask[..., None]).sum(1) - 2 * self.embed(second).sum(1)
        return {"logits": torch.cat([texts, x], 1)}


MIXED = {
    "x": torch.tensor([[1.0, 2.0]]),
    "first": torch.tensor([[1, 2, 3]]),
    "second": torch.tensor([[4, 5, 6]]),
    "mask": torch.tensor([[1, 1, 0]]),
}


def test_floats_and_embeddings_of_nested_inputs_are_features() -> None:
    model = Mixed()
    found = fields(model, MIXED)
    assert found == [Field("x", 0), Field("first", 1, "embed"), Field("second", 2, "embed")]
    subject = Subject(model, MIXED, found, DataSpec((), 6, "other"))
    x, first, second = subject.features()
    torch.testing.assert_close(subject.outputs(x, first, second), model(**MIXED)["logits"])
    rows = [torch.cat([feature, 0 * feature]) for feature in (x, first, second)]
    torch.testing.assert_close(subject.outputs(*rows)[1], torch.zeros(6))
    halves = subject.outputs(torch.cat([x, x]), torch.cat([first, first]), torch.cat([second, 0 * second]))
    torch.testing.assert_close(halves[1, :4], model.embed(torch.tensor([1, 2])).sum(0))


def test_each_text_has_its_own_attributions() -> None:
    model = Mixed()
    known = Known(DataSpec((), 6, "other"), {}, str, str, lambda number: torch.zeros(2))
    explainer = Explainer(model, plugins.create(METHODS, "integrated_gradients"), known, baseline="auto", seed=0)
    document = explainer.explain(MIXED, None, 0, 1).document
    by_name = {field["name"]: field["attributions"] for field in document["fields"]}
    values = model.embed.weight[:, 1]
    assert by_name["x"] == [0, 0]
    assert by_name["first"] == pytest.approx([*values[1:3].tolist(), 0], abs=1e-5)
    assert by_name["second"] == pytest.approx((-2 * values[4:]).tolist(), abs=1e-5)


def test_inputs_and_outputs_without_features_are_refused() -> None:
    with pytest.raises(UserError, match=r"expected floating-point inputs, or tokens that an nn\.Embedding takes"):
        fields(nn.Flatten(), torch.zeros(1, 3, dtype=torch.long))
    x = torch.zeros(1, 2, 3, 4)
    subject = Subject(nn.Identity(), x, [Field("input", 0)], TABLE)
    with pytest.raises(UserError, match=r"the outputs are float32 \[1, 2, 3, 4\], expected \(samples, outputs\)"):
        subject.outputs(x)


def test_the_weights_of_attention_are_those_of_torch() -> None:
    torch.manual_seed(0)
    layer, x = nn.MultiheadAttention(8, 2, batch_first=True).eval(), torch.randn(1, 5, 8)
    _, expected = layer(x, x, x, need_weights=True, average_attn_weights=False)
    found: dict[str, Any] = {}
    (weights,) = recorded(lambda: found.update(outputs=layer(x, x, x, need_weights=False)))
    torch.testing.assert_close(weights, expected[0])
    torch.testing.assert_close(found["outputs"][0], layer(x, x, x)[0])
    assert found["outputs"][1] is None
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, batch_first=True), 2).eval()
    assert [w.shape for w in recorded(lambda: encoder(x))] == [(2, 5, 5)] * 2


@pytest.mark.parametrize("more", [{}, {"is_causal": True}, {"attn_mask": torch.eye(5).bool()}, {"scale": 2.0}], ids=str)
def test_weights_times_values_are_the_attention(more: dict[str, Any]) -> None:
    query, key, value = torch.randn(3, 1, 2, 5, 4, generator=torch.Generator().manual_seed(0))
    expected = nn.functional.scaled_dot_product_attention(query, key, value, **more)
    torch.testing.assert_close(weights_of(query, key, value, **more) @ value, expected)


def test_rollout_multiplies_layers_and_follows_residual_connections() -> None:
    shift = torch.tensor([[1.0, 0, 0], [1, 0, 0], [0, 1, 0]])[None]
    assert rollout([torch.eye(3)[None]] * 4).tolist() == [0, 0, 1]
    assert rollout([shift]).tolist() == [0, 0.5, 0.5]
    assert rollout([shift, shift]).tolist() == [0.25, 0.5, 0.25]


def test_the_shipped_transformer_shows_one_layer_of_weights_for_each_block() -> None:
    model = transformer.create(DataSpec((6,), 9, "language"), layers=3, width=8, heads=2).eval()
    found = recorded(lambda: model(torch.arange(6)[None]))
    assert [tuple(w.shape) for w in found] == [(2, 6, 6)] * 3
    assert all(bool((w.triu(1) == 0).all()) for w in found), "causal"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def run(kind: str) -> Path:
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            made[kind] = trained.digits(folder, model="cnn") if kind == "cnn" else trained.KINDS[kind](folder)
        return made[kind]

    return run


KINDS = {
    "digits": "image", "cnn": "image", "table": "table", "regression": "table", "text": "text", "images": "image",
    "audio": "waveform",
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_integrated_gradients_are_complete_on_every_kind_of_data(runs, tmp_path: Path, kind: str) -> None:
    found = explained(runs(kind), tmp_path / "out", samples=1)
    assert len(found["samples"]) == 1
    for sample in found["samples"]:
        assert sample["completeness_error"] <= 0.01
        assert sample["sum"] == pytest.approx(sample["change"], rel=0.01)
        assert [field["kind"] for field in sample["fields"]] == [KINDS[kind]]
    save.save(f"a $kind$ <{kind}>", found, tmp_path / "out")
    assert (tmp_path / "out" / "explain.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "out" / "explain.html").exists() == (kind == "text")
    assert (tmp_path / "out" / "maps.npz").exists() == (KINDS[kind] in {"image", "waveform"})


@pytest.mark.parametrize("method", [method for method in ALL if method != "integrated_gradients"])
def test_every_method_explains_a_language_model(runs, tmp_path: Path, method: str) -> None:
    found = explained(runs("text"), tmp_path / "out", samples=1, method=method)
    (sample,) = found["samples"]
    (field,) = sample["fields"]
    assert len(field["parts"]) == len(field["attributions"]) == 32
    assert "".join(field["parts"]) in trained.TEXT
    save.save(method, found, tmp_path / "out")
    if method == "attention":
        assert sum(field["attributions"]) == pytest.approx(1, abs=1e-5)
    if method == "shap":
        assert sample["completeness_error"] < 1e-4
    assert report.text(found, 140).count("\n") == 4


def test_columns_have_names_and_values_before_they_were_encoded(runs, tmp_path: Path) -> None:
    found = explained(runs("table"), tmp_path / "out", samples=5)
    rows = [line.split(",") for line in (runs("table").parent / "table.csv").read_text().split()[1:]]
    for sample in found["samples"]:
        (field,) = sample["fields"]
        assert field["parts"] == ["width", "height", "size"], "one-hot inputs are one column"
        width, height, size = field["values"]
        assert any(
            row[2:] == [size, sample["class"]]
            and np.allclose([float(v) for v in row[:2]], [float(width), float(height)], rtol=1e-3)
            for row in rows
        )


def test_every_number_of_ranks_finds_the_same(runs, tmp_path: Path) -> None:
    whole = explained(runs("digits"), tmp_path / "one", samples=5)
    for size in (2, 3, 7):
        folder = tmp_path / str(size)
        for found in threads.run(size, lambda comm, folder=folder: explained(runs("digits"), folder, comm, samples=5)):
            assert found == whole
        with np.load(tmp_path / "one" / "maps.npz") as one, np.load(folder / "maps.npz") as other:
            assert one.files
            assert sorted(one.files) == sorted(other.files)
            assert all(np.array_equal(one[name], other[name]) for name in one.files)


def test_a_named_class_is_explained(runs, tmp_path: Path) -> None:
    for sample in explained(runs("table"), tmp_path / "out", samples=3, output="no")["samples"]:
        assert sample["explained"] == "no"
        assert (sample["probability"] > 0.5) == (sample["predicted"] == "no")
    (token,) = explained(runs("text"), tmp_path / "out", samples=1, output="q")["samples"]
    assert token["explained"] == "q"


def test_the_baseline_decides_what_attributions_are_relative_to(runs, tmp_path: Path) -> None:
    found = {
        baseline: explained(runs("digits"), tmp_path / "out", samples=1, baseline=baseline)["samples"][0]
        for baseline in ("auto", "zero", "mean")
    }
    assert found["auto"]["change"] == found["zero"]["change"], "black"
    assert found["mean"]["change"] != found["zero"]["change"]
    assert found["mean"]["score"] == found["zero"]["score"]


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("digits", {"method": "attention"}, "the model calls neither scaled_dot_product_attention nor nn.Multihead"),
        ("table", {"output": "yess"}, "--class: no 'yess' among the outputs of the model; did you mean 'yes'"),
        ("digits", {"output": "10"}, "--class: no '10' among the outputs of the model"),
        ("digits", {"split": "valid"}, "--split: no 'valid' in the data"),
    ],
    ids=["no attention", "class", "number", "split"],
)
def test_what_cannot_be_explained_is_refused(runs, tmp_path: Path, kind: str, options: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        explained(runs(kind), tmp_path / "out", samples=1, **options)


def _found(**more: Any) -> dict[str, Any]:
    sample = {
        "sample": 3, "class": "<b>", "predicted": "x", "explained": "x", "score": 1.0, "probability": 0.5, "change": 1.0,
        "sum": 1.0, "completeness_error": 0.001, "steps": 32, "parts": 9, "rank_correlation": 0.1,
        "fields": [{"name": "input", "kind": "text", "parts": ["<i>", "\n", ""], "attributions": [0.5, -0.5, 0.0]}],
    }  # fmt: skip
    return {
        "method": "integrated_gradients", "promises_completeness": True, "similar": 0.5, "task": "classification",
        "samples": [{**sample, **more}],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({}, "the values add up to the change of the score on all samples (error at most 0.10%)"),
        ({"completeness_error": 0.02}, "the error is above 1 % for the samples 3; do not read their values as shares"),
        ({"completeness_error": None}, "integrated_gradients does not divide the change of the score"),
        ({"rank_correlation": 0.1}, "is +0.10: the maps depend on what the model has learned"),
        ({"rank_correlation": -0.9}, "is -0.90: the maps hardly depend on what the model has learned"),
        ({"rank_correlation": None}, "have equal values only, so their ranks cannot be compared"),
        ({"parts": 2}, "samples have 2 parts, of which random maps often have the same order"),
    ],
    ids=str,
)
def test_sentences_say_what_figures_mean(more: dict[str, Any], sentence: str) -> None:
    assert sum(sentence in line for line in report.verdict(_found(**more))) == 1


def test_a_page_shows_tokens_and_never_runs_them() -> None:
    found = page.page("<h>", _found())
    assert "<i>" not in found
    assert "&lt;i&gt;" in found
    assert "is &lt;b&gt;" in found
    assert '<span style="background:#f7f6f6" title="+0">·</span>' in found

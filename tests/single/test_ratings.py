"""Ratings: numbers of ids, splits, negatives, models, metrics of rankings and recommendations."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hvd_train.comm.communicator import Communicator
from hvd_train.compute.losses.bpr import PairwiseRanking
from hvd_train.compute.metrics.ranking import NDCG, Recall
from hvd_train.config.document import Document
from hvd_train.config.resolve import read_section
from hvd_train.config.schema import DataSection
from hvd_train.data import preprocessing
from hvd_train.data.base import Dataset
from hvd_train.data.batch import Batch
from hvd_train.data.load import load
from hvd_train.data.ratings import ids as of_ids
from hvd_train.data.ratings import seen as of_pairs
from hvd_train.data.ratings.seen import Unseen, keys_of, pairs_of
from hvd_train.data.spec import DataSpec
from hvd_train.errors import UserError
from hvd_train.models.zoo import matrix_factorization, two_tower
from hvd_train.saved.model import load_model
from hvd_train.saved.run import find_run
from hvd_train.trained.predicting.predictor import Predictor
from tests.bodies import ratings as table
from tests.bodies import trained
from tests.bodies import training as body
from tests.engines import threads


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    table.write(tmp_path / "ratings.csv")
    return tmp_path


def section(**options: Any) -> DataSection:
    return read_section(DataSection, Document({"name": "ratings", "path": "ratings.csv", **options}, "test"))


def read(*rows: str, columns: str = "user,item,rating,time", **options: Any) -> Dataset:
    if rows:
        Path("ratings.csv").write_text("\n".join([columns, *rows]) + "\n")
    return load(section(**options))


def names(data: Dataset, key: str) -> list[Any]:
    return of_ids.saved(json.loads(json.dumps(data.preprocessing))[key]["ids"]).names


def triples(data: Dataset, split: Any) -> list[tuple[Any, Any, float]]:
    """Return user, item and rating of each sample, by their ids."""
    inputs, y = split.batch(torch.arange(len(split)))
    users, items = names(data, "user"), names(data, "item")
    numbers = zip(inputs["user"].tolist(), inputs["item"].tolist(), y[:, 0].tolist(), strict=True)
    return [(users[u], items[i], r) for u, i, r in numbers]


def written() -> set[tuple[int, int, float]]:
    rows = [line.split(",") for line in Path("ratings.csv").read_text().splitlines()[1:]]
    return {(int(u), int(i), float(r)) for u, i, r, _ in rows}


def test_every_row_is_a_sample_under_the_number_of_its_ids() -> None:
    data = read(test_fraction=0.25)
    found = [triples(data, part) for part in (data.train, data.test)]
    assert [len(part) for part in found] == [1125, 375]
    assert set(found[0]) | set(found[1]) == written()
    assert data.spec == DataSpec(
        (), 1, "regression", vocabularies={"user": 41, "item": 61}, target_mean=data.spec.target_mean
    )
    assert data.spec.target_mean == pytest.approx(np.mean([r for _, _, r in found[0]]))


def test_ids_may_be_texts_and_unknown_ones_have_the_number_0() -> None:
    rows = [f"{u},{i},{len(i)},0" for u in ("zoe", "adam", "eve") for i in ("M1", "M22")]
    data = read(*rows, "bob,M3,1,9", split="time", test_fraction=1 / 7)
    assert names(data, "user") == [None, "adam", "eve", "zoe"]
    assert triples(data, data.test) == [(None, None, 1.0)]
    assert data.warnings == (
        "ratings.csv: 1 of 1 held-out rows have a user (1) or an item (1) of no training row; they are predicted by the mean "
        "and the bias of the other",
    )


def test_splits_by_time_and_by_user() -> None:
    data = read(split="time")
    rows = {(int(u), int(i)): int(t) for u, i, _, t in (line.split(",") for line in _lines())}
    times = [{rows[u, i] for u, i, _ in triples(data, part)} for part in (data.train, data.test)]
    assert times == [set(range(1200)), set(range(1200, 1500))]
    data = read(split="user", test_fraction=0.3)
    counts = [np.unique([u for u, _, _ in triples(data, part)], return_counts=True) for part in (data.train, data.test)]
    assert counts[0][0].tolist() == counts[1][0].tolist()
    whole = counts[0][1] + counts[1][1]
    assert counts[1][1].tolist() == np.rint(whole * 0.3).tolist()
    assert triples(data, data.test) == triples(data, read(split="user", test_fraction=0.3).test)
    assert triples(data, data.test) != triples(data, read(split="user", test_fraction=0.3, seed=1).test)


def _lines() -> list[str]:
    return Path("ratings.csv").read_text().splitlines()[1:]


def test_a_pair_counts_once_with_its_last_rating() -> None:
    data = read("1,1,5,3", "1,2,1,0", "1,1,2,1", "2,1,4,0", test_fraction=0)
    assert sorted(triples(data, data.train)) == [(1, 1, 2.0), (1, 2, 1.0), (2, 1, 4.0)]
    assert data.warnings == (
        "ratings.csv: column 'user', line 4: user '1' and item '1' stand in an earlier row too; 1 rows repeat a pair, and each "
        "pair counts with its last rating",
    )
    data = read(split="time", test_fraction=0)
    assert sorted(triples(data, data.train)) == [(1, 1, 5.0), (1, 2, 1.0), (2, 1, 4.0)]


def test_other_formats_and_names_of_columns() -> None:
    import pyarrow
    import pyarrow.parquet

    columns = {"who": [3, 4, 3], "what": ["b", "a", "a"], "stars": [1.0, 2.5, 3.0]}
    pyarrow.parquet.write_table(pyarrow.table(columns), "r.parquet")
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    Path("r.jsonl").write_text("\n".join(map(json.dumps, rows)))
    Path("r.tsv").write_text(
        "\n".join("\t".join(map(str, row)) for row in [list(columns), *(r.values() for r in rows)])
    )
    for path in ("r.parquet", "r.jsonl", "r.tsv"):
        data = load(section(path=path, user="who", item="what", rating="stars", test_fraction=0))
        assert triples(data, data.train) == [(3, "b", 1.0), (4, "a", 2.5), (3, "a", 3.0)]


def test_another_file_is_numbered_by_the_ids_of_the_run() -> None:
    document = json.loads(json.dumps(preprocessing.document(read(test_fraction=0))))
    Path("new.csv").write_text("user,item,rating\n8,590,3\n8,5,1\n")
    data = load(section(path="new.csv", test_fraction=0), fitted=document)
    assert data.spec.vocabularies == {"user": 41, "item": 61}
    inputs, _ = data.train.batch(torch.arange(2))
    assert (inputs["user"].tolist(), inputs["item"].tolist()) == ([2, 2], [60, 0])


BAD = {
    "a rating that is text": (
        ["1,1,good,0"],
        {},
        "ratings.csv: column 'rating', line 2: 'good' is no number, expected a rating",
    ),
    "a rating that is missing": (
        ["1,1,3,0", "1,2,,0"],
        {},
        "ratings.csv: column 'rating', line 3: no value, expected one in each row",
    ),
    "a rating that is infinite": (
        ["1,1,inf,0"],
        {},
        "ratings.csv: column 'rating', line 2: found inf, expected a finite number",
    ),
    "a user that is missing": (
        ["1,1,3,0", ",2,3,0", ",1,3,0"],
        {},
        "ratings.csv: column 'user', line 3: no value, expected one in each row; 2 rows are like it",
    ),
    "a missing column": (["1,1,3,0"], {"item": "items"}, "ratings.csv: no column 'items'; did you mean 'item'?"),
    "ids that are fractions": (
        ["1.5,1,3,0"],
        {},
        "ratings.csv: column 'user', line 2: 1.5 is of type double, expected ids that are integers or texts",
    ),
    "a time that is text": (
        ["1,1,3,soon"],
        {"split": "time"},
        "ratings.csv: column 'time', line 2: 'soon' is of type string, expected numbers or dates",
    ),
    "nothing to train on": (
        ["1,1,3,0"],
        {"test_fraction": 0.9},
        "ratings.csv: test_fraction 0.9 leaves none of 1 samples for training",
    ),
    "no rows": ([], {"negatives": 1}, "ratings.csv: 0 rows, 1 features, expected at least one of each"),
    "no negatives": (
        ["1,1,3,0", "1,2,3,0"],
        {"negatives": 1, "test_fraction": 0},
        "ratings.csv: each user has all 2 items in training, expected items that a user has not, as negatives",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_tables_are_refused(case: str) -> None:
    rows, options, message = BAD[case]
    Path("ratings.csv").write_text("\n".join(["user,item,rating,time", *rows]) + "\n")
    with pytest.raises(UserError) as refused:
        load(section(**options))
    assert str(refused.value).startswith(message)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 9)), max_size=40))
def test_unseen_items_are_all_others_in_order(chosen: list[tuple[int, int]]) -> None:
    users, items = np.array(chosen, np.int64).reshape(-1, 2).T
    pairs = pairs_of(users, items, 6)
    again = of_pairs.saved(json.loads(json.dumps(pairs.document)))
    assert (again.starts.tolist(), again.items.tolist()) == (pairs.starts.tolist(), pairs.items.tolist())
    unseen = Unseen(pairs.starts, keys_of(pairs, 9), 9)
    for user in range(6):
        others = sorted(set(range(1, 10)) - {i for u, i in chosen if u == user})
        assert unseen.free(np.array([user])).tolist() == [len(others)]
        assert unseen.at(np.array([user]), np.arange(len(others))[None]).tolist() == [others]


def test_negatives_are_unseen_uniform_and_depend_on_seed_epoch_and_position() -> None:
    train = load(section(negatives=20, split="user"), seed=3).train
    inputs, targets = train.at(0).batch(torch.arange(len(train)))
    assert targets[:, 0].eq(1).all()
    assert targets[:, 1:].eq(0).all()
    own: dict[int, set[int]] = {}
    for user, item in zip(inputs["user"].tolist(), inputs["item"][:, 0].tolist(), strict=True):
        own.setdefault(user, set()).add(item)
    counts = np.zeros((41, 61))
    for user, negatives in zip(inputs["user"].tolist(), inputs["item"][:, 1:].tolist(), strict=True):
        assert own[user].isdisjoint(negatives)
        np.add.at(counts, (user, negatives), 1)
    assert counts[:, 0].sum() == 0
    for user, seen in own.items():
        free = [i for i in range(1, 61) if i not in seen]
        expected = len(seen) * 20 / len(free)
        assert ((counts[user, free] - expected) ** 2 / expected).sum() < 3 * len(free), "not uniform"
    some = torch.tensor([7, 400, 7])
    assert torch.equal(train.at(0).batch(some)[0]["item"], inputs["item"][some])
    assert not torch.equal(train.at(1).batch(some)[0]["item"], inputs["item"][some])
    other = load(section(negatives=20, split="user"), seed=4).train
    assert not torch.equal(other.at(0).batch(some)[0]["item"], inputs["item"][some])


def test_held_out_users_have_targets_for_all_items() -> None:
    rows = [*(f"{u},{i},1,{i}" for u in (1, 2) for i in (10, 20, 30)), "1,40,1,90", "2,50,1,91", "3,10,1,92"]
    data = read(*rows, "2,10,1,93", "1,60,1,1", negatives=1, split="time", test_fraction=0.35)
    inputs, targets = data.test.batch(torch.arange(len(data.test)))
    users, items = names(data, "user"), names(data, "item")
    train = {
        (users[u], items[i])
        for u, i in zip(*(x.reshape(len(data.train), -1)[:, 0].tolist() for x in _pairs(data)), strict=True)
    }
    for user, row in zip(inputs["user"].tolist(), targets.tolist(), strict=True):
        assert row[0] == -100
        for item, target in list(zip(items, row, strict=True))[1:]:
            held = (users[user], item) not in train and f"{users[user]},{item}" in {r[: r.rindex(",1,")] for r in rows}
            assert target == (-100 if (users[user], item) in train else held), (users[user], item)


def _pairs(data: Dataset) -> tuple[Tensor, Tensor]:
    inputs, _ = data.train.batch(torch.arange(len(data.train)))
    return inputs["user"], inputs["item"]


def test_a_user_with_all_items_is_left_out_of_training() -> None:
    data = read("1,1,1,0", "1,2,1,0", "2,1,1,0", negatives=3, test_fraction=0)
    inputs, _ = data.train.batch(torch.arange(len(data.train)))
    assert inputs["user"].tolist() == [2]
    assert inputs["item"].tolist() == [[1, 2, 2, 2]]
    assert "1 users have all 2 items in training and are left out there" in data.warnings[0]


SPEC = DataSpec((), 1, "regression", vocabularies={"user": 5, "item": 7}, target_mean=3.5)


def test_matrix_factorisation_adds_mean_biases_and_product() -> None:
    model = matrix_factorization.create(SPEC, width=3)
    users, items = torch.tensor([1, 4, 0]), torch.tensor([6, 2, 3])
    p, q = model.user.weight, model.item.weight
    assert p[0].eq(0).all()
    assert q[0].eq(0).all()
    with torch.no_grad():
        p[1:, -1], q[1:, -1] = torch.randn(4), torch.randn(6)
    expected = [3.5 + p[u, 3] + q[i, 3] + p[u, :3] @ q[i, :3] for u, i in zip(users, items, strict=True)]
    torch.testing.assert_close(model(users, items)[:, 0], torch.stack(expected))


@pytest.mark.parametrize("make", [matrix_factorization.create, two_tower.create])
def test_scores_of_all_items_are_those_of_each_pair(make: Any) -> None:
    model = make(SPEC, width=4).eval()
    for users in (torch.tensor([3, 0, 1]), torch.tensor([2])):
        whole = model(users)
        several = model(users, torch.arange(7).expand(len(users), 7))
        each = torch.cat([model(users, torch.full_like(users, item)) for item in range(7)], 1)
        torch.testing.assert_close(whole, each)
        torch.testing.assert_close(several, each)


def test_models_of_other_data_are_refused() -> None:
    from hvd_train.models.zoo import mlp

    with pytest.raises(
        UserError, match="takes users and items, such as those of 'ratings', not regression data of shape"
    ):
        matrix_factorization.create(DataSpec((3,), 1, "regression"))
    with pytest.raises(
        UserError, match="'mlp' takes classification or regression data, not regression data with user, item"
    ):
        mlp.create(SPEC)


def ranked(rows: int = 23, items: int = 31) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    targets = torch.where(torch.rand(rows, items, generator=generator) < 0.2, 1.0, 0.0)
    targets[torch.rand(rows, items, generator=generator) < 0.3] = -100
    targets[3] = 0
    return torch.randn(rows, items, generator=generator), targets


def by_hand(scores: Tensor, targets: Tensor, k: int) -> tuple[float, float]:
    recalls, ndcgs = [], []
    for row, of in zip(scores.tolist(), targets.tolist(), strict=True):
        order = sorted((i for i in range(len(row)) if of[i] >= 0), key=lambda i: -row[i])
        relevant = sum(t == 1 for t in of)
        if relevant:
            hits = [of[i] == 1 for i in order[:k]]
            recalls.append(sum(hits) / relevant)
            best = sum(1 / math.log2(p + 2) for p in range(min(k, relevant)))
            ndcgs.append(sum(hit / math.log2(p + 2) for p, hit in enumerate(hits)) / best)
    return sum(recalls) / len(recalls), sum(ndcgs) / len(ndcgs)


@pytest.mark.parametrize(("ranks", "k"), [(1, 10), (2, 3), (5, 40)])
def test_recall_and_ndcg_are_those_of_a_loop_over_users(ranks: int, k: int) -> None:
    scores, targets = ranked()

    def run(comm: Communicator) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for meter in (Recall(k), NDCG(k)):
            for part in torch.arange(len(scores)).tensor_split(comm.size)[comm.rank].split(4):
                meter.update(scores[part], Batch({"user": part}, targets[part], None))
            found |= meter.compute(comm)
        return found

    recall, ndcg = by_hand(scores, targets, k)
    for found in threads.run(ranks, run):
        assert found == pytest.approx({f"recall_at_{k}": recall, f"ndcg_at_{k}": ndcg}, rel=1e-12)


def test_bpr_is_the_mean_over_pairs_of_each_sample() -> None:
    scores, targets = ranked()
    loss = PairwiseRanking()
    expected = 0.0
    for row, of in zip(scores.double(), targets, strict=True):
        pairs = [
            math.log1p(math.exp(row[j] - row[i])) for i in range(31) for j in range(31) if of[i] == 1 and of[j] == 0
        ]
        expected += sum(pairs) / max(1, len(pairs))
    assert float(loss(scores.double(), Batch(None, targets, None))) == pytest.approx(expected)
    first = torch.zeros(23, 31)
    first[:, 0] = 1
    alone = sum(float(loss(scores[i : i + 1], Batch(None, first[i : i + 1], None))) for i in range(23))
    assert float(loss(scores, Batch(None, first, None))) == pytest.approx(alone, rel=1e-5)


OPTIONS = {
    "ratings": ({}, {"name": "matrix_factorization", "width": 4}),
    "sparse": ({}, {"name": "matrix_factorization", "width": 4, "sparse": True}),
    "ranking": ({"negatives": 2, "split": "user"}, {"name": "two_tower", "width": 4, "hidden": [3], "sparse": True}),
}


def configuration(size: int, case: str, **sections: Any) -> Any:
    data, model = OPTIONS[case]
    return body.configuration(
        data={**table.data(Path("ratings.csv"), **data), "batch_size": 120 // size, "target": None},
        model={**model, "target": None},
        optimizer={"name": "Adam", "lr": 0.02, "momentum": None, "weight_decay": 0.001},
        **{"train": {"epochs": 1}, **sections},
    )


@pytest.mark.parametrize(("case", "clip_norm"), [("ratings", None), ("sparse", 0.05), ("ranking", None)])
def test_ranks_train_as_one_process_does(case: str, clip_norm: float | None) -> None:
    def run(comm: Communicator) -> tuple[dict[str, Tensor], dict[str, Any]]:
        job = body.trainer(comm, configuration(comm.size, case, train={"epochs": 1, "clip_norm": clip_norm}))
        job.run()
        return body.parameters(job), job.evaluation.metrics

    ((alone, metrics),) = threads.run(1, run)
    assert ("recall_at_10" in metrics) == (case == "ranking")
    for weights, of_rank in threads.run(2, run):
        body.assert_close(weights, alone, 1e-5)
        assert of_rank == pytest.approx(metrics, rel=1e-6)


def test_federated_clients_keep_their_users() -> None:
    def run(comm: Communicator) -> set[int]:
        config = configuration(comm.size, "ratings", sync={"strategy": "federated", "fusion_mb": None})
        config.data.partition = section(partition="by_group").partition
        job = body.trainer(comm, config)
        own = job.sampler.epoch(0).indices
        job.run()
        return set(job.data.train.groups[own].tolist())

    of_ranks = threads.run(3, run)
    assert sum(map(len, of_ranks)) == 40
    assert set().union(*of_ranks) == set(range(1, 41))


def predictor(folder: Path, top: int = 1, **options: Any) -> Predictor:
    data = table.data(folder / "ratings.csv", **options)
    run = trained.train(
        folder,
        {
            "model": {"name": "matrix_factorization", "width": 4},
            "data": data,
            "optimizer": {"name": "Adam", "lr": 0.05, "weight_decay": 0.0001},
            "train": {"epochs": 20, "eval_every": 1000},
        },
    )
    (folder / "ratings.csv").rename(folder / "gone.csv")
    return Predictor(load_model(find_run(run)), top=top)


def test_a_run_recommends_items_that_a_user_has_not(folder: Path) -> None:
    found = predictor(folder, top=5, negatives=2, split="user")
    answers = found.predict([{"user": 8}, {"user": 1}])
    Path("gone.csv").rename("ratings.csv")
    data = read(negatives=2, split="user")
    users, items = names(data, "user"), names(data, "item")
    seen = {(users[u], items[i]) for u, i in zip(*(x.flatten().tolist() for x in _firsts(data)), strict=True)}
    for user, answer in zip((8, 1), answers, strict=True):
        top = [one["item"] for one in answer["top"]]
        assert answer["item"] == top[0]
        assert len(set(top)) == 5
        assert not {(user, item) for item in top} & seen
        assert sum(item // 10 % 2 == user // 7 % 2 for item in top) >= 4, "items of the other taste"
        assert [one["score"] for one in answer["top"]] == sorted((one["score"] for one in answer["top"]), reverse=True)
    assert found.predict([{"user": 99999}])[0]["item"] in items
    assert "column 'user': '99999' is in no training row" in next(iter(found.input.warnings()))
    for record, message in (
        ({"user": "eve"}, "record 0 (from 0): column 'user': 'eve' is no integer, expected an id as in training"),
        ({"item": 3}, "record 0 (from 0): no column 'user'"),
        ({"user": None}, "record 0 (from 0): column 'user': no value, expected the id of a user"),
    ):
        with pytest.raises(UserError) as refused:
            found.predict([record])
        assert str(refused.value).startswith(message)


def _firsts(data: Dataset) -> tuple[Tensor, Tensor]:
    users, items = _pairs(data)
    return users, items[:, 0]


def test_a_user_without_items_left_gets_none(folder: Path) -> None:
    rows = [*(f"1,{i},1,0" for i in range(3)), "2,0,1,0", "2,1,1,0"]
    (folder / "ratings.csv").write_text("\n".join(["user,item,rating,time", *rows]) + "\n")
    found = predictor(folder, top=2, negatives=1, test_fraction=0)
    assert found.predict([{"user": 1}]) == [{"item": None, "score": None, "top": [{"item": None, "score": None}]}]
    answer = found.predict([{"user": 2}])[0]
    assert [one["item"] for one in answer["top"]] == [2]


def test_a_run_predicts_ratings_by_ids(folder: Path) -> None:
    found = predictor(folder)
    likes, dislikes = (one["rating"] for one in found.predict([{"user": 8, "item": 10}, {"user": 8, "item": 20}]))
    assert likes > 3.5 > dislikes

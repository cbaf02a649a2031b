import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hvd_train.comm.engines.single import SingleCommunicator
from hvd_train.config.document import Document
from hvd_train.config.launch import Launch, parse_document, to_document
from hvd_train.config.resolve import resolve
from hvd_train.errors import UserError
from hvd_train.monitor.sinks import jsonl
from hvd_train.rank import events
from hvd_train.rank.failures import report
from hvd_train.state import checkpoint_folder, packing
from hvd_train.text import strict_json
from hvd_train.training import checkpoint


def read(text: str | bytes) -> Any:
    """Read JSON as other programs do, which know no NaN and no Infinity."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    return json.loads(text, parse_constant=refuse)


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(("value", "null", "exact"), [
    (NAN, None, {"float": "nan"}),
    ([1.5, INF, (-INF,)], [1.5, None, [None]], [1.5, {"float": "inf"}, [{"float": "-inf"}]]),
    ({"a": {"b": NAN}, "c": 1}, {"a": {"b": None}, "c": 1}, {"a": {"b": {"float": "nan"}}, "c": 1}),
    (np.float64("nan"), None, {"float": "nan"}),
    ("\x00\ud800é", "\x00\ud800é", "\x00\ud800é"),
])  # fmt: skip
def test_what_is_written_is_json(value, null, exact):
    assert read(strict_json.dumps(value)) == null
    assert read(strict_json.dumps(value, indent=1)) == null
    assert read(strict_json.dumps_exact(value)) == exact


def test_exact_json_comes_back_equal():
    value = {"best": NAN, "rates": [INF, -INF, 0.1, 1], "float": "nan", "words": {"float": "x"}, "none": None}
    assert str(strict_json.loads_exact(strict_json.dumps_exact(value))) == str(value)


def test_events_metrics_and_failures_are_json(tmp_path):
    with open(tmp_path / "events", "wb") as file:
        events.emit(file.fileno(), "beat", loss=NAN)
    (event,), *_ = events.split((tmp_path / "events").read_bytes())
    assert event["loss"] is None
    sink = jsonl.create(tmp_path)
    sink.open({"first_step": 0, "total_steps": 2})
    sink.evaluation({"step": 1, "loss": NAN, "accuracy": 0.5})
    sink.close({})
    assert read((tmp_path / "metrics.jsonl").read_text()) == {"kind": "eval", "step": 1, "loss": None, "accuracy": 0.5}
    error = ValueError("no")
    error.lost = NAN
    with open(tmp_path / "sink", "wb") as file:
        report(error, 0, file.fileno(), tmp_path)
    assert read((tmp_path / "errors" / "rank-0.json").read_text())["lost"] is None


def test_a_checkpoint_is_json_and_keeps_what_is_no_number(tmp_path: Path):
    state = {"optimizer": packing.pack({"lr": INF, "loss": NAN, "float": "nan"}, "optimizer", {})}
    alone = SingleCommunicator()
    checkpoint.save(checkpoint.Snapshot({}, {}, state), tmp_path / "checkpoints", 1, 1, alone)
    (folder,) = checkpoint_folder.folders(tmp_path / "checkpoints")
    read((folder / "state.json").read_text())
    found = checkpoint.load(tmp_path, alone, print).state
    assert str(packing.unpack(found["optimizer"], {})) == "{'lr': inf, 'loss': nan, 'float': 'nan'}"


def test_a_configuration_holds_finite_numbers_and_arguments_of_any_kind():
    values = {"model": {"target": "a:b", "args": {"top": INF}}, "data": "synthetic"}
    launch = Launch(world_size=1, engine="single", output="x")
    document = to_document(resolve(Document(values, "x")), launch)
    read(document)
    assert parse_document(document)[0].model.options == {"top": INF}
    with pytest.raises(UserError, match=r"optimizer\.lr: expected a finite number, got nan"):
        resolve(Document(values, "x"), ["optimizer.lr=.nan"])

"""From records to answers, with the model and the preprocessing of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from hvd_train.compute.calling import caller
from hvd_train.compute.precision import Precision
from hvd_train.data.fitted import classes_of
from hvd_train.data.nesting import map_tensors
from hvd_train.errors import UserError
from hvd_train.trained import answer, input
from hvd_train.trained.answer import Answer, AnswerContext, Columns, values
from hvd_train.trained.generating.decoding import Decoding
from hvd_train.trained.generating.search import GREEDY, Search
from hvd_train.trained.input import Input, Place, Record, numbered

if TYPE_CHECKING:
    from hvd_train.saved.model import LoadedModel


class Predictor:
    """Predicts with the model of a run, on one device and in one thread at a time.

    `top` is the number of classes to name, the most probable first. `tokens` is the most tokens that a
    model writes, and `search` says how they are chosen. Raise UserError for a run whose data source is the
    user's own and makes no samples of one tensor.
    """

    def __init__(
        self, loaded: LoadedModel, *, top: int = 1, tokens: int | None = None, search: Search = GREEDY
    ) -> None:
        if top < 1:
            raise UserError(f"--top: {top}, expected at least 1")
        if search != GREEDY and loaded.spec.task not in ("language", "seq2seq"):
            raise UserError(
                f"--beams and --sample are for models that write texts, and the run predicts {loaded.spec.task}; leave them out"
            )
        config, document = loaded.config, loaded.preprocessing
        document = {**document.get("sources", [{}])[0], **document}  # a mixture has one target
        self._precision = _precision(loaded)
        self._call = caller(loaded.module)
        self.input: Input = input.of_run(loaded.spec, document, config.data)
        target = document.get("target") or {}
        self.answer: Answer = answer.create(
            AnswerContext(
                spec=loaded.spec,
                run=self._run,
                loss=config.train.loss.member,
                target=target.get("name") or document.get("input", {}).get("target"),
                classes=classes_of(document) or (),
                document=document,
                tokens=tokens,
                decode=Decoding(loaded.module, self._precision, loaded.spec),
                search=search,
                top=top,
            )
        )

    def encode(self, records: Sequence[Record], place: Place = numbered) -> Any:
        """Return the inputs of a batch; UserError, which begins with `place(i)`, for a wrong record i."""
        return self.input.encode(records, place)

    def columns(self, records: Sequence[Record], place: Place = numbered) -> Columns:
        """Return the answers to `records` as columns."""
        return self.answer(self.encode(records, place))

    def predict(self, records: Sequence[Record], place: Place = numbered) -> list[dict[str, Any]]:
        """Return the answer to each record as JSON.

        Classes have `class`, `probability` and, with `top` > 1, a list `top` of them. Numbers stand
        under the name of the target, or `value`.
        """
        if not len(records):
            return []
        columns = {name: values(column) for name, column in self.columns(records, place).items()}
        rows = zip(*columns.values(), strict=True)
        return [self.answer.record(dict(zip(columns, row, strict=True))) for row in rows]

    @torch.inference_mode()
    def _run(self, inputs: Any) -> Any:
        """Return the outputs of the model, as evaluations of the run compute them."""
        placed = map_tensors(self._precision.inputs, inputs)
        with self._precision.forward():
            return self._call(placed)


def _precision(loaded: LoadedModel) -> Precision:
    """Return the precision of the run, in which evaluations were computed; float32 for one in float64."""
    first = next(loaded.module.parameters(), torch.empty(0))
    name = loaded.config.train.precision
    return Precision("fp32" if name == "fp64" and first.dtype == torch.float32 else name, first.device)

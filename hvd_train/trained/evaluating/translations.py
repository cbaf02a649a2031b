"""Compares the texts that a model writes with those of held-out pairs, and with simple answers.

A model that was trained on texts like the held-out ones may have learned them by heart. The scores therefore
stand beside those of two answers that need no model, and once more for the held-out sources that are least
like a training source.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hvd_train.comm.objects import gather_json
from hvd_train.data.pairs.items import PairItems
from hvd_train.data.samples import SampleSplit
from hvd_train.data.tokenizing import saved
from hvd_train.rank.task import TaskContext
from hvd_train.saved.run import described
from hvd_train.state.checkpoint_folder import run_of
from hvd_train.trained.evaluating.nearest import SIMILARITY, nearest
from hvd_train.trained.evaluating.text_scores import scores
from hvd_train.trained.generating.decoding import Decoding
from hvd_train.trained.generating.search import GREEDY
from hvd_train.trained.generating.translating import Translate
from hvd_train.trained.restore import Trained
from hvd_train.training.evaluation import held_out_part

UNLIKE = 0.5
"""Sources whose similarity to the nearest training source is below count as unlike training."""
EXAMPLES = 10

Pair = tuple[str, str]


def translated(context: TaskContext, trained: Trained, split: Any, size: int) -> dict[str, Any]:
    """Return the scores of the model's translations of `split`, and of simple answers; collective.

    Batches have `size` pairs, and are the same on any number of ranks. The result is empty on other ranks
    than the first, and for samples that are no pairs of texts.
    """
    items = split.items if isinstance(split, SampleSplit) else None
    if not isinstance(items, PairItems):
        return {}
    own = _translations(context, trained, split, size)
    every = {number: text for part in gather_json(context.comm, own) for number, text in part}
    if context.comm.rank:
        return {}
    numbers = sorted(every)
    pairs = [items.texts(number) for number in numbers]
    return {"translations": compared(pairs, [every[number] for number in numbers], _training_pairs(context, trained))}


def compared(pairs: Sequence[Pair], texts: Sequence[str], training: Sequence[Pair]) -> dict[str, Any]:
    """Return the scores of `texts` and of simple answers, over all pairs and over those unlike `training`.

    Without training pairs, the nearest training source and its translation are not known.
    """
    sources, targets = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    answers: dict[str, Sequence[str]] = {"model": texts, "copy of the source": sources}
    parts = {"all": list(range(len(pairs)))}
    near, similarity = [""] * len(pairs), [0.0] * len(pairs)
    if training:
        at, values = nearest(sources, [pair[0] for pair in training])
        near, similarity = [training[number][1] for number in at], values.tolist()
        answers = {"model": texts, "nearest training source": near, "copy of the source": sources}
        parts[f"unlike training, below {UNLIKE}"] = np.flatnonzero(values < UNLIKE).tolist()
    rows = [
        {
            "sources": name,
            "number": len(part),
            "answer": answer,
            **scores([of[i] for i in part], [targets[i] for i in part]),
        }
        for name, part in parts.items()
        for answer, of in answers.items()
    ]
    chosen = [round(i * len(pairs) / EXAMPLES) for i in range(min(EXAMPLES, len(pairs)))]
    return {
        "similarity": SIMILARITY,
        "rows": rows,
        "examples": [
            {
                "source": sources[i],
                "target": targets[i],
                "model": texts[i],
                "nearest": near[i],
                "similarity": similarity[i],
            }
            for i in chosen
        ],
    }


def _translations(context: TaskContext, trained: Trained, split: SampleSplit, size: int) -> list[tuple[int, str]]:
    """Return the translations of this rank's part of `split`, with their positions."""
    data, built = trained.built.data, trained.built
    facts = saved.described(data.preprocessing, data.spec)
    decode = saved.decoder(facts)
    assert decode is not None
    assert isinstance(split.items, PairItems)
    start = Decoding(built.model, built.precision, data.spec)
    translate = Translate(start, GREEDY, split.items.begin, facts["end"], data.spec.input_shape[0])
    own = held_out_part(split, None, context.comm, size)
    parts = own.split(size) if len(own) else ()
    made = []
    with context.progress("translating", len(parts)) as advance:
        for part in parts:
            found = translate([split.items.item(number)["input_ids"] for number in part.tolist()])
            made += [(number, decode(one.tokens)) for number, one in zip(part.tolist(), found, strict=True)]
            advance()
    return made


def _training_pairs(context: TaskContext, trained: Trained) -> list[Pair]:
    """Return the training pairs of the run; none if the data are other ones."""
    folder = run_of(context.checkpoint)
    known = described(folder).get("input", {}).get("digest") if folder else None
    if known is None or known != trained.built.data.input["digest"]:
        return []
    items = trained.built.data.train.items
    return [items.texts(number) for number in range(len(items))]

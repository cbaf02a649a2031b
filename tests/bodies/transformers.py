"""Small models of the library transformers, with random weights, and texts of unequal length for them."""

from __future__ import annotations

from typing import Any

import torch

from hvd_train.data.base import Dataset
from hvd_train.data.spec import DataSpec
from hvd_train.data.torch_datasets import as_dataset

LENGTH, VOCABULARY, CLASSES = 8, 20, 3

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 12}
BERT = {
    **SIZES,
    "model_type": "bert",
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "max_position_embeddings": LENGTH,
}
GPT2 = {
    "model_type": "gpt2",
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 4,
    "attn_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "resid_pdrop": 0.0,
    "n_positions": LENGTH,
}
LLAMA = {**SIZES, "model_type": "llama", "num_key_value_heads": 2}


def texts(samples: int = 106) -> Dataset:
    """Return dicts of tokens and a mask; the most frequent of the first tokens is the class."""
    generator = torch.Generator().manual_seed(6)
    made = []
    for i in range(samples):
        length = int(torch.randint(2, LENGTH + 1, (), generator=generator))
        tokens = torch.randint(CLASSES, VOCABULARY, (length,), generator=generator)
        tokens[::2] = i % CLASSES
        made.append(
            {"input_ids": tokens, "attention_mask": torch.ones(length, dtype=torch.bool), "labels": i % CLASSES}
        )
    data = as_dataset((made[9:], made[:9]), "texts", stacked=False)
    spec = DataSpec((LENGTH,), CLASSES, "classification", vocabularies={"input_ids": VOCABULARY})
    return Dataset(data.train, data.test, spec)


def classifier(**changed: Any) -> dict[str, dict[str, Any]]:
    """Return sections of a classifier of `texts`; `changed` are options of the model."""
    model = {"name": "huggingface", "task": "sequence-classification", "config": BERT, "target": None}
    return {
        "model": {**model, **changed},
        "data": {"target": "tests.bodies.transformers:texts", "collate": "pad", "workers": 0},
    }


def decoder(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return sections of a language model."""
    return {
        "model": {"name": "huggingface", "task": "causal-lm", "config": config, "target": None},
        "data": {"target": "tests.bodies.parallelism:language"},
    }

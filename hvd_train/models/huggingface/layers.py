"""The layers of models of transformers, for pipelines, and the linear layers that ranks can share.

Both exist for the families below. A layer takes and returns a dict of `hidden` and, if the inputs
have one, the `mask` of their tokens (batch, length). Each block makes its own mask of attention from
it, as the library does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hvd_train.models.base import Layer, Pair
from hvd_train.models.huggingface.library import masking

Flow = dict[str, Tensor]
DECODERS = ("llama", "mistral", "qwen2", "qwen3")
"""Types of models whose blocks are those of Llama."""


class Family(NamedTuple):
    """How the layers of a family of models are found in a model."""

    layers: Callable[[Any], list[Layer] | None]
    """Returns the layers; None if this model has others."""
    pairs: Callable[[Any], Iterator[Pair]]


def family(model: Any) -> Family | None:
    """Return the family of `model`; None if its layers are not known."""
    kind = model.config.model_type
    if kind == "bert" and not model.config.is_decoder:
        return Family(_bert_layers, _bert_pairs)
    if kind == "gpt2" and not model.config.add_cross_attention:
        return Family(_gpt2_layers, _gpt2_pairs)
    if kind in DECODERS and _attends_to_all(model.config):
        return Family(_decoder_layers, _decoder_pairs)
    return None


def _attends_to_all(config: Any) -> bool:
    """Return True if no block looks at a window of tokens only."""
    kinds = getattr(config, "layer_types", None)
    return set(kinds) == {"full_attention"} if kinds else getattr(config, "sliding_window", None) is None


def _flow(hidden: Tensor, mask: Tensor | None) -> Flow:
    return {"hidden": hidden} if mask is None else {"hidden": hidden, "mask": mask}


def _positions(hidden: Tensor) -> Tensor:
    return torch.arange(hidden.shape[1], device=hidden.device)[None]


def _causal(config: Any, flow: Flow) -> Any:
    hidden = flow["hidden"]
    # By position: versions of the library have two names of the cache, which is None.
    return masking().create_causal_mask(config, hidden, flow.get("mask"), None, _positions(hidden))


def _with_hidden(flow: Flow, hidden: Tensor) -> Flow:
    return {**flow, "hidden": hidden}


def _bert_layers(model: Any) -> list[Layer] | None:
    inner, head = model.bert, _bert_head(model)
    if head is None:
        return None

    def embedded(input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None) -> Flow:
        return _flow(inner.embeddings(input_ids=input_ids, token_type_ids=token_type_ids), attention_mask)

    def run(block: nn.Module, flow: Flow) -> Flow:
        mask = masking().create_bidirectional_mask(
            config=model.config, inputs_embeds=flow["hidden"], attention_mask=flow.get("mask")
        )
        return _with_hidden(flow, block(flow["hidden"], mask))

    blocks = [Layer((f"bert.encoder.layer.{i}",), partial(run, block)) for i, block in enumerate(inner.encoder.layer)]
    return [Layer(("bert.embeddings",), embedded), *blocks, head]


def _bert_head(model: Any) -> Layer | None:
    """Return the head that classifies texts or tokens; None for another one."""

    def classified(flow: Flow) -> Flow:
        hidden = flow["hidden"] if model.bert.pooler is None else model.bert.pooler(flow["hidden"])
        return {"logits": model.classifier(model.dropout(hidden))}

    if not hasattr(model, "classifier"):
        return None
    own = ("dropout", "classifier")
    return Layer(own if model.bert.pooler is None else ("bert.pooler", *own), classified)


def _bert_pairs(model: Any) -> Iterator[Pair]:
    config = model.config
    for i in range(config.num_hidden_layers):
        at = f"bert.encoder.layer.{i}"
        attention = f"{at}.attention.self"
        yield Pair(
            tuple(f"{attention}.{name}" for name in ("query", "key", "value")),
            f"{at}.attention.output.dense",
            config.num_attention_heads,
            noisy=attention if config.attention_probs_dropout_prob else None,
        )
        yield Pair((f"{at}.intermediate.dense",), f"{at}.output.dense", config.intermediate_size)


def _gpt2_layers(model: Any) -> list[Layer] | None:
    inner = model.transformer

    def embedded(input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None) -> Flow:
        tokens = inner.wte(input_ids)
        hidden = tokens + inner.wpe(_positions(tokens))
        if token_type_ids is not None:
            hidden = hidden + inner.wte(token_type_ids)
        return _flow(inner.drop(hidden), attention_mask)

    def run(block: nn.Module, flow: Flow) -> Flow:
        return _with_hidden(flow, block(flow["hidden"], None, _causal(model.config, flow), use_cache=False))

    blocks = [Layer((f"transformer.h.{i}",), partial(run, block)) for i, block in enumerate(inner.h)]
    embedding = ("transformer.wte", "transformer.wpe", "transformer.drop")
    head = _token_head(model, "transformer.ln_f", "transformer.wte")
    return None if head is None else [Layer(embedding, embedded), *blocks, head]


def _gpt2_pairs(model: Any) -> Iterator[Pair]:
    config = model.config
    for i in range(config.num_hidden_layers):
        at = f"transformer.h.{i}"
        yield Pair(
            (f"{at}.attn.c_attn",),
            f"{at}.attn.c_proj",
            config.num_attention_heads,
            groups=3,
            transposed=True,
            counts=((f"{at}.attn", "split_size"),),
            refused="set attn_pdrop to 0.0 in the model's config" if config.attn_pdrop else None,
        )
        width = config.n_inner or 4 * config.hidden_size
        yield Pair((f"{at}.mlp.c_fc",), f"{at}.mlp.c_proj", width, transposed=True)


def _decoder_layers(model: Any) -> list[Layer] | None:
    inner = model.model

    def embedded(input_ids: Tensor, attention_mask: Tensor | None = None) -> Flow:
        return _flow(inner.embed_tokens(input_ids), attention_mask)

    def run(block: nn.Module, flow: Flow) -> Flow:
        hidden = flow["hidden"]
        positions = _positions(hidden)
        out = block(
            hidden,
            attention_mask=_causal(model.config, flow),
            position_ids=positions,
            position_embeddings=inner.rotary_emb(hidden, position_ids=positions),
            use_cache=False,
        )
        return _with_hidden(flow, out)

    blocks = [
        Layer((f"model.layers.{i}", "model.rotary_emb"), partial(run, block)) for i, block in enumerate(inner.layers)
    ]
    head = _token_head(model, "model.norm", "model.embed_tokens")
    return None if head is None else [Layer(("model.embed_tokens",), embedded), *blocks, head]


def _decoder_pairs(model: Any) -> Iterator[Pair]:
    config = model.config
    for i in range(config.num_hidden_layers):
        attention, feed = f"model.layers.{i}.self_attn", f"model.layers.{i}.mlp"
        yield Pair(
            tuple(f"{attention}.{name}_proj" for name in "qkv"),
            f"{attention}.o_proj",
            config.num_key_value_heads,
            noisy=attention if config.attention_dropout else None,
        )
        yield Pair((f"{feed}.gate_proj", f"{feed}.up_proj"), f"{feed}.down_proj", config.intermediate_size)


def _token_head(model: Any, norm: str, embedding: str) -> Layer | None:
    """Return the layer that scores tokens; None if the model has another head."""
    if not hasattr(model, "lm_head"):
        return None
    # If the embedding is the output layer too, both stages have the one module that the weight is named by.
    is_tied = model.lm_head.weight is model.get_submodule(embedding).weight
    path = embedding if is_tied else "lm_head"
    last, scorer = model.get_submodule(norm), model.get_submodule(path)

    def scored(flow: Flow) -> Flow:
        return {"logits": F.linear(last(flow["hidden"]), scorer.weight, getattr(scorer, "bias", None))}

    return Layer((norm, path), scored)

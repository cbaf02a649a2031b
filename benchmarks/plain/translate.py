"""Translate messages of programs from English to French with an encoder and a decoder: BLEU, chrF, exact matches."""

from __future__ import annotations

import csv
import math
from itertools import islice

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from torchmetrics.functional.text import chrf_score, sacre_bleu_score

from benchmarks.plain.report import arguments, batches, held_out, report, times

BATCH = 64
PAD, START, END = 0, 1, 2
LONGEST = 64


class Translator(nn.Module):
    def __init__(
        self, vocabulary: int, width: int = 144, layers: int = 2, heads: int = 4, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width, padding_idx=PAD)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)
        self.register_buffer("position", sinusoids(LONGEST, width))
        shape = {
            "dim_feedforward": 4 * width,
            "dropout": dropout,
            "activation": "gelu",
            "batch_first": True,
            "norm_first": True,
        }
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(width, heads, **shape), layers, nn.LayerNorm(width), enable_nested_tensor=False
        )
        self.decoder = nn.TransformerDecoder(
            nn.TransformerDecoderLayer(width, heads, **shape), layers, nn.LayerNorm(width)
        )
        self.dropout = nn.Dropout(dropout)
        self.scale = width**0.5

    def embed(self, tokens: Tensor) -> Tensor:
        return self.dropout(self.scale * self.embedding(tokens) + self.position[: tokens.shape[1]])

    def encode(self, source: Tensor) -> Tensor:
        return self.encoder(self.embed(source), src_key_padding_mask=source == PAD)

    def decode(self, memory: Tensor, source: Tensor, target: Tensor) -> Tensor:
        """Return the logits of the token after each one of `target`."""
        later = torch.ones(target.shape[1], target.shape[1], dtype=torch.bool).triu(1)
        hidden = self.decoder(
            self.embed(target),
            memory,
            tgt_mask=later,
            tgt_key_padding_mask=target == PAD,
            memory_key_padding_mask=source == PAD,
        )
        return hidden @ self.embedding.weight.T

    def translate(self, source: Tensor) -> Tensor:
        """Return the most likely next token, again and again."""
        memory, target = self.encode(source), source.new_full((len(source), 1), START)
        while target.shape[1] < LONGEST and not (target == END).any(1).all():
            following = self.decode(memory, source, target)[:, -1].argmax(1)
            target = torch.cat([target, following[:, None]], 1)
        return target


def main() -> None:
    options = arguments(__doc__, epochs=14)
    with options.data.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    pairs = [(row["source"], row["target"]) for row in rows if 2 <= len(row["source"].split()) <= 20]
    train, test = held_out(len(pairs), 0.1, options)
    tokenizer = trained_tokenizer([text for row in train.tolist() for text in pairs[row]])
    tokens = [
        [torch.tensor([START, *tokenizer.encode(text).ids[: LONGEST - 2], END]) for text in pair] for pair in pairs
    ]
    lengths = torch.tensor([len(source) + len(target) for source, target in tokens])

    def batch(chosen: Tensor) -> tuple[Tensor, Tensor]:
        sides = zip(*(tokens[row] for row in chosen.tolist()), strict=True)
        source, target = (pad_sequence(list(side), batch_first=True, padding_value=PAD) for side in sides)
        return source, target

    def loss_of(chosen: Tensor) -> Tensor:
        source, target = batch(chosen)
        logits = model.decode(model.encode(source), source, target[:, :-1])
        return functional.cross_entropy(
            logits.flatten(0, 1), target[:, 1:].flatten(), ignore_index=PAD, label_smoothing=0.1
        )

    model = Translator(tokenizer.get_vocab_size())
    steps = options.limit or options.epochs * -(-len(train) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warm_cosine(step, steps))
    done = 0
    while done < steps:
        for chosen in islice(batches(train, lengths, BATCH, pool=16), steps - done):
            loss = loss_of(chosen)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            done += 1
    model.eval()
    order = test[lengths[test].argsort()]
    with torch.inference_mode():
        loss = sum(loss_of(chosen).item() * len(chosen) for chosen in order.split(BATCH)) / len(order)
        trained = times()
        made = [row for chosen in order.split(BATCH) for row in model.translate(batch(chosen)[0]).tolist()]
    answers = tokenizer.decode_batch([row[: row.index(END)] if END in row else row for row in made])
    references = [pairs[row][1] for row in order.tolist()]
    many = [[reference] for reference in references]
    report(
        {
            "loss": loss,
            "bleu": 100 * sacre_bleu_score(answers, many).item(),
            "chrf": 100 * chrf_score(answers, many, n_word_order=0).item(),
            "exact": sum(a == r for a, r in zip(answers, references, strict=True)) / len(references),
        },
        done,
        trained,
    )


def warm_cosine(step: int, steps: int, warm: int = 200) -> float:
    """Return the factor of the learning rate."""
    if step < warm:
        return (step + 1) / warm
    return (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm))) / 2


def sinusoids(length: int, width: int) -> Tensor:
    """Return sines and cosines of positions (Vaswani et al., arXiv 1706.03762)."""
    angles = torch.arange(length)[:, None] / 10_000 ** (torch.arange(0, width, 2) / width)
    return torch.cat([angles.sin(), angles.cos()], 1)


def trained_tokenizer(texts: list[str]) -> Tokenizer:
    """Return a byte-pair encoding of 3,000 tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=3000, special_tokens=["[PAD]", "[START]", "[END]"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


if __name__ == "__main__":
    main()

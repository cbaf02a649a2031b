"""Byte-pair encoding that is learned from the training text.

Sennrich et al., arXiv 1508.07909, on bytes, as GPT-2 does.
"""

from __future__ import annotations

from hvd_train.config.options import Annotated, Field
from hvd_train.data.files import import_extra
from hvd_train.data.tokenizing.base import Texts
from hvd_train.data.tokenizing.library import ENDS, EXTRA, LibraryTokenizer


def create(
    texts: Texts,
    *,
    vocabulary: Annotated[
        int, Field(ge=257), "number of tokens: 256 bytes, the token that ends a document, and learned ones"
    ] = 3000,
) -> LibraryTokenizer:
    """Return a tokenizer with at most `vocabulary` tokens. A short text has fewer pairs to learn."""
    library = import_extra("tokenizers", EXTRA)
    tokenizer = library.Tokenizer(library.models.BPE())
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[ENDS[0]],
        initial_alphabet=sorted(library.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(), trainer)
    return LibraryTokenizer(tokenizer, tokenizer.token_to_id(ENDS[0]))

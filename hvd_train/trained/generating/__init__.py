"""Sequences of tokens that a model writes: greedy, by beam search, and by sampling."""

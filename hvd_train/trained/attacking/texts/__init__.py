"""Corruptions of texts as tokens, one file each."""

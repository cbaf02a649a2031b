"""Texts in pairs, a source and a target each, as tokens."""

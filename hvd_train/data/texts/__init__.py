"""Labelled texts of files, as tokens."""

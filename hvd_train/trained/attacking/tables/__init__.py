"""Corruptions of the rows of a table, one file each."""

"""Meters: the metrics of an evaluation, exact over any number of ranks."""

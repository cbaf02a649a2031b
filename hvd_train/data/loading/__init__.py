"""Loads batches beside training, in worker processes or threads."""

"""Environments, in which agents act: their contract, and copies that are stepped together."""

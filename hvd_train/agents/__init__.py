"""Agents: what acts in environments, and learns from what follows. `algorithms` are the plugins."""

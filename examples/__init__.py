"""Models and scripts that run unchanged.

This file protects the name from packages called `examples`.
"""

"""Measurements beyond `ddl bench`."""

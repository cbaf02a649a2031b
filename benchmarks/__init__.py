"""Measurements that are no subcommand of `ddl bench`."""

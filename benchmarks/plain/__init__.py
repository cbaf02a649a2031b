"""Workloads as single-process PyTorch scripts without ddl, which `benchmarks.workloads` compares ddl with.

Each script prints one JSON line: its metrics, and the figures of `report.report`.
"""

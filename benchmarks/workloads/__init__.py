"""Workloads on real data: `ddl run` on one and two ranks, beside plain PyTorch scripts."""

"""Real hosts and a real SLURM on one machine."""

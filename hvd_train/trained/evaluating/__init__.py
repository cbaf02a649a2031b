"""What an evaluation reports beside its metrics: parts that every rank measures and that are merged."""

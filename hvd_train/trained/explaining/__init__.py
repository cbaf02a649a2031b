"""What `ddl explain` computes: which parts of a sample decide an output of a trained model."""

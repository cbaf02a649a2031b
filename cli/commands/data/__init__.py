"""Look at data, and prepare it for training."""

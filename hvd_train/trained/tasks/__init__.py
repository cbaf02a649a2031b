"""Tasks of ranks with a trained model, one file each; the contract is `hvd_train/rank/task.py`."""

"""Of tests in one process, of which CI runs as many at once as there are cores."""

import torch

# Threads of torch that share a core spin while they wait: with them these tests took twice as long.
torch.set_num_threads(1)

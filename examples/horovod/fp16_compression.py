"""Gradients sent as float16: ddl run --np 2 examples/horovod/fp16_compression.py"""

import horovod.torch as hvd
import torch
from digits import datasets, evaluate, network, train


def main():
    hvd.init()
    torch.manual_seed(0)
    train_set, test_set = datasets()
    model = network()
    optimizer = hvd.DistributedOptimizer(
        torch.optim.Adam(model.parameters(), lr=0.005),
        named_parameters=model.named_parameters(),
        compression=hvd.Compression.fp16,
    )
    hvd.broadcast_parameters(model.state_dict(), root_rank=0)
    hvd.broadcast_optimizer_state(optimizer, root_rank=0)

    train(model, optimizer, train_set, epochs=10, batch_size=32)
    loss, accuracy = evaluate(model, test_set)
    if hvd.rank() == 0:
        print(f"16-bit gradients: test loss {loss:.4f}, accuracy {accuracy:.4f}")


if __name__ == "__main__":
    main()

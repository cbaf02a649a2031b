"""Updates combined by Adasum: ddl run --np 2 examples/horovod/adasum.py

The learning rate is that of one rank.
"""

import horovod.torch as hvd
import torch
from digits import datasets, evaluate, network, train


def main():
    hvd.init()
    torch.manual_seed(0)
    train_set, test_set = datasets()
    model = network()
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = hvd.DistributedOptimizer(inner, named_parameters=model.named_parameters(), op=hvd.Adasum)
    hvd.broadcast_parameters(model.state_dict(), root_rank=0)

    train(model, optimizer, train_set, epochs=10, batch_size=16)
    loss, accuracy = evaluate(model, test_set)
    if hvd.rank() == 0:
        print(f"Adasum over {hvd.size()} ranks: test loss {loss:.4f}, accuracy {accuracy:.4f}")


if __name__ == "__main__":
    main()

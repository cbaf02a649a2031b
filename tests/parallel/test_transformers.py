"""Models of the library transformers under mpirun, on the engine of this session.

Two ranks suffice, and each takes seconds to import the library.
"""

from __future__ import annotations

import pytest

from hvd_train.comm.communicator import Communicator
from hvd_train.comm.engines.single import SingleCommunicator
from tests.bodies import parallelism, training
from tests.bodies.transformers import classifier

GLOBAL_BATCH = 24


def test_ranks_equal_one_process_on_texts_of_unequal_length(comm: Communicator) -> None:
    if comm.size > 2:
        return

    def trained(world: Communicator, batch: int) -> training.Trainer:
        sections = classifier(freeze=["bert.embeddings.*"])
        sections["data"] |= {"batch_size": batch}
        job = training.trainer(world, training.configuration(**sections, train={"epochs": 1}))
        job.run()
        return job

    with training.alone(comm):
        expected = training.parameters(trained(SingleCommunicator(), GLOBAL_BATCH))
    training.assert_close(training.parameters(trained(comm, GLOBAL_BATCH // comm.size)), expected)


@pytest.mark.parametrize("parallel", [(2, 1), (1, 2)])
def test_stages_and_shares_equal_one_process(comm: Communicator, parallel: tuple[int, int]) -> None:
    if comm.size == 2:
        parallelism.equals_one_process(comm, [("bert", "adamw", *parallel, "1f1b", 2)])

"""One rank of `horovod.run`: `ddl run -m hvd_train.horovod_call FOLDER`, where the caller left the function."""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path

import cloudpickle

from hvd_train.horovod_run import CALL, RESULTS


def main(folder: Path) -> None:
    """Call the function on this rank. Rank 0 reads the call and writes all results."""
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    there, path, call = pickle.loads(world.bcast(_read(folder) if world.rank == 0 else None))
    os.chdir(there)
    sys.path += [entry for entry in path if entry not in sys.path]
    function, args, kwargs = pickle.loads(call)
    try:
        result = function(*args, **kwargs)
    except SystemExit as end:
        raise RuntimeError(f"the function ended its rank: sys.exit({end.code!r}); let it return instead") from end
    results = world.gather(cloudpickle.dumps(result))
    if results is not None:
        (folder / RESULTS).write_bytes(pickle.dumps(results))


def _read(folder: Path) -> bytes:
    if not folder.is_dir():
        raise RuntimeError(
            "horovod.run: rank 0 is not on the machine that called it, which has the function; put that machine first "
            "in hosts"
        )
    return (folder / CALL).read_bytes()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

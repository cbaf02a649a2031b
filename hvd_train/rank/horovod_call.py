"""One rank of `horovod.run`, started by `ddl run -m hvd_train.rank.horovod_call FOLDER`.

The caller has written the function to FOLDER.
"""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path

import cloudpickle

from hvd_train.rank.horovod_run import CALL, RESULTS


def main(folder: Path) -> None:
    """Call the function on this rank. Rank 0 reads it from `folder` and writes the results."""
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    working_directory, path, call = pickle.loads(world.bcast(_read(folder) if world.rank == 0 else None))
    os.chdir(working_directory)
    sys.path += [entry for entry in path if entry not in sys.path]
    function, args, kwargs = pickle.loads(call)
    try:
        result = function(*args, **kwargs)
    except SystemExit as end:
        raise RuntimeError(f"the function called sys.exit({end.code!r}); return from it instead") from end
    results = world.gather(cloudpickle.dumps(result))
    if results is not None:
        (folder / RESULTS).write_bytes(pickle.dumps(results))


def _read(folder: Path) -> bytes:
    if not folder.is_dir():
        raise RuntimeError(
            "horovod.run: rank 0 is not on the machine of the caller, which holds the function; list that machine first "
            "in hosts"
        )
    return (folder / CALL).read_bytes()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

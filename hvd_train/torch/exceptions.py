"""The exceptions of Horovod's API, by the names that scripts catch."""

from __future__ import annotations


class HorovodInternalError(RuntimeError):
    """A collective operation failed on every rank alike; elastic training goes back to the last commit."""


class HostsUpdatedInterrupt(RuntimeError):
    """The hosts of the job have changed; `skip_sync` says that the state need not be synchronised."""

    def __init__(self, skip_sync: bool) -> None:
        super().__init__(skip_sync)
        self.skip_sync = skip_sync


NOT_INITIALIZED = "Horovod's API has not been initialized: call hvd.init() first"

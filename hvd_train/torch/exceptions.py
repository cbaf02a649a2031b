"""The exceptions of Horovod's API, with Horovod's names."""

from __future__ import annotations


class HorovodInternalError(RuntimeError):
    """A collective operation failed on every rank. Elastic training returns to the last commit."""


class HostsUpdatedInterrupt(RuntimeError):
    """The hosts of the job have changed.

    `skip_sync` is True if the state need not be synchronized.
    """

    def __init__(self, skip_sync: bool) -> None:
        super().__init__(skip_sync)
        self.skip_sync = skip_sync


class HorovodVersionMismatchError(ImportError):
    """The installed version of a framework differs from the expected one."""

    def __init__(self, name: str, version: str, installed_version: str | None) -> None:
        super().__init__(get_version_mismatch_message(name, version, installed_version))
        self.name, self.version, self.installed_version = name, version, installed_version


def get_version_mismatch_message(name: str, version: str, installed_version: str | None) -> str:
    return f"{name}: found version {version}, but {installed_version} is installed; install one version only"


NOT_INITIALIZED = "Horovod's API has not been initialized: call hvd.init() first"

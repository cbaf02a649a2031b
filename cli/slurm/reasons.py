"""Why SLURM lets a job wait, where that is for ever or needs a person. Other reasons pass by themselves."""

from __future__ import annotations

import re
from dataclasses import dataclass

from hvd_train.errors import ExitCode


@dataclass(frozen=True)
class Reason:
    """What a reason means; `exit_code` is that of a wait which ends there, None where waiting may help."""

    text: str
    exit_code: int | None = None


def _never(text: str) -> Reason:
    return Reason(text, int(ExitCode.BAD_INPUT))


_NODES = "a node that the job asks for is down, drained or reserved; the job waits until it is back"
_REASONS = {
    "DependencyNeverSatisfied": Reason("the job that it depends on did not end as asked", int(ExitCode.FAILURE)),
    "PartitionTimeLimit": _never("its time limit is longer than the partition allows; ask for less --time"),
    "PartitionNodeLimit": _never("the partition gives a job another number of nodes; change --nodes or --partition"),
    "PartitionConfig": _never(
        "the partition allows no such job; ask for less --time, other --nodes or another --partition"
    ),
    "BadConstraints": _never("no node has what the job asks for; change --sbatch constraint or the other requests"),
    "ReservationDeleted": _never("its reservation is gone; leave out --sbatch reservation or name another"),
    "InvalidAccount": _never("its account is none; give another --account"),
    "InvalidQOS": _never("its quality of service is none; give another --qos"),
    "AccountNotAllowed": _never("its account may not use the partition; give another --account or --partition"),
    "QOSNotAllowed": _never("its quality of service may not use the partition; give another --qos or --partition"),
    "QOSTimeLimit": _never("its time limit is longer than the quality of service allows; ask for less --time"),
    "JobHeldUser": Reason("it is held by its user: scontrol release lets it go"),
    "JobHeldAdmin": Reason("an administrator holds it, and has to release it"),
    "JobHoldMaxRequeue": Reason("SLURM holds it after too many requeues: scontrol release lets it go"),
    "launch_failed_requeued_held": Reason("SLURM holds it after its launch failed: scontrol release lets it go"),
    "PartitionDown": Reason("the partition is down; the job waits until an administrator opens it"),
    "PartitionInactive": Reason("the partition is inactive; the job waits until an administrator opens it"),
    "ReqNodeNotAvail": Reason(_NODES),
    "NodeDown": Reason(_NODES),
}
_LIMIT_OF_A_JOB = re.compile(r"(Assoc|QOS)(Max\w*Per(Job|Node)\w*|Min\w+)")


def meaning(reason: str) -> Reason | None:
    """What SLURM's `reason` means, details behind a comma left out; None where the job just waits for its turn."""
    word = reason.partition(",")[0].strip().replace(" ", "_")
    if _LIMIT_OF_A_JOB.fullmatch(word):
        return _never("the account or the quality of service allows no job of this size; ask for less or change --qos")
    return _REASONS.get(word)

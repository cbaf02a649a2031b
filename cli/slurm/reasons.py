"""SLURM's reasons for a waiting job that need a person or never end.

Other reasons pass by themselves.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from hvd_train.errors import ExitCode


@dataclass(frozen=True)
class Reason:
    """The meaning of a reason.

    `exit_code` is what `--wait` exits with, or None if the job may still start.
    """

    text: str
    exit_code: int | None = None


def _never(text: str) -> Reason:
    return Reason(text, int(ExitCode.BAD_INPUT))


_NODES = "a requested node is down, drained or reserved; the job waits until the node is back"
_REASONS = {
    "DependencyNeverSatisfied": Reason("the job it depends on did not end in the required way", int(ExitCode.FAILURE)),
    "PartitionTimeLimit": _never("its time limit is longer than the partition allows; request a shorter --time"),
    "PartitionNodeLimit": _never("the partition does not allow this number of nodes; change --nodes or --partition"),
    "PartitionConfig": _never(
        "the partition does not allow this job; request a shorter --time, other --nodes or another --partition"
    ),
    "BadConstraints": _never("no node meets the request; change --sbatch constraint or the other requests"),
    "ReservationDeleted": _never(
        "its reservation does not exist any more; leave out --sbatch reservation or name another"
    ),
    "InvalidAccount": _never("its account does not exist; give another --account"),
    "InvalidQOS": _never("its quality of service does not exist; give another --qos"),
    "AccountNotAllowed": _never("its account has no access to the partition; give another --account or --partition"),
    "QOSNotAllowed": _never("its quality of service has no access to the partition; give another --qos or --partition"),
    "QOSTimeLimit": _never("its time limit is longer than the quality of service allows; request a shorter --time"),
    "JobHeldUser": Reason("its user holds it: scontrol release ends the hold"),
    "JobHeldAdmin": Reason("an administrator holds it and must release it"),
    "JobHoldMaxRequeue": Reason("SLURM holds it after too many requeues: scontrol release ends the hold"),
    "launch_failed_requeued_held": Reason("SLURM holds it because its launch failed: scontrol release ends the hold"),
    "PartitionDown": Reason("the partition is down; the job waits until an administrator opens it"),
    "PartitionInactive": Reason("the partition is inactive; the job waits until an administrator opens it"),
    "ReqNodeNotAvail": Reason(_NODES),
    "NodeDown": Reason(_NODES),
}
_LIMIT_OF_A_JOB = re.compile(r"(Assoc|QOS)(Max\w*Per(Job|Node)\w*|Min\w+)")


def meaning(reason: str) -> Reason | None:
    """Return the meaning of SLURM's `reason`, or None if the job waits for its turn.

    Details after a comma in `reason` do not count.
    """
    word = reason.partition(",")[0].strip().replace(" ", "_")
    if _LIMIT_OF_A_JOB.fullmatch(word):
        return _never(
            "the account or the quality of service does not allow a job of this size; request less or change --qos"
        )
    return _REASONS.get(word)

"""Variables of this shell that ranks on other hosts get too, without `-x`.

Open MPI hands its environment to the ranks of this machine only; Hydra, horovodrun and srun hand all of it to every host.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from cli.environment import is_secret

NAMES = (
    "LD_LIBRARY_PATH",
    "PYTHONHASHSEED",
    "PYTHONPATH",
    "PYTHONUNBUFFERED",
    "PYTHONWARNINGS",
    "TOKENIZERS_PARALLELISM",
)
PREFIXES = (
    *("CUBLAS_", "CUDA_", "CUDNN_", "FI_", "GLOO_", "GOMP_", "HF_", "HOROVOD_", "KMP_", "MKL_", "NCCL_", "NVIDIA_"),
    *("OMP_", "OPENBLAS_", "PSM2_", "PYTORCH_", "TORCH_", "TRANSFORMERS_", "UCX_", "WANDB_"),
)
OF_A_RANK = re.compile(r"HOROVOD_(RANK|SIZE|(LOCAL|CROSS)_(RANK|SIZE)|HOSTNAME|SECRET_KEY|.*_RENDEZVOUS_.*)")
"""What horovodrun sets for one rank: a job that a rank starts has others."""


def chosen(environment: Mapping[str, str]) -> dict[str, str]:
    """Those of `environment` that go to every host."""
    return {name: value for name, value in sorted(environment.items()) if _listed(name) and not _secret(name)}


def secrets(environment: Iterable[str]) -> list[str]:
    """Those that would go along if their names did not say that they are secret."""
    return sorted(name for name in environment if _listed(name) and _secret(name))


def _secret(name: str) -> bool:
    return name not in NAMES and is_secret(name)


def _listed(name: str) -> bool:
    return (name in NAMES or name.startswith(PREFIXES)) and not OF_A_RANK.fullmatch(name)

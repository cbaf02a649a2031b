"""The environment variables that ddl forwards to ranks on other hosts without `-x`.

Open MPI forwards its environment only to ranks on this machine. Hydra, horovodrun and srun forward
it to every host.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from cli.launch.environment import is_secret

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
"""Variables that horovodrun sets for one rank. A job that this rank starts has its own."""


def select(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of `environment` that are forwarded."""
    return {name: value for name, value in sorted(environment.items()) if _listed(name) and not _secret(name)}


def secrets(environment: Iterable[str]) -> list[str]:
    """Return the names on the list that suggest a secret and are therefore not forwarded."""
    return sorted(name for name in environment if _listed(name) and _secret(name))


def _secret(name: str) -> bool:
    return name not in NAMES and is_secret(name)


def _listed(name: str) -> bool:
    return (name in NAMES or name.startswith(PREFIXES)) and not OF_A_RANK.fullmatch(name)

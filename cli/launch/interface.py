"""The environment variables that select the network interface of a job in each library."""

from __future__ import annotations

_SUBNET_TOO = ("OMPI_MCA_btl_tcp_if_include", "PRTE_MCA_prte_if_include", "OMPI_MCA_oob_tcp_if_include")
_NAME_ONLY = (
    "MPIR_CVAR_NEMESIS_TCP_NETWORK_IFACE", "FI_TCP_IFACE", "HYDRA_IFACE", "I_MPI_HYDRA_IFACE",
    "NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME", "HOROVOD_GLOO_IFACE",
)  # fmt: skip


def variables(interface: str) -> dict[str, str]:
    """Return the variables of Open MPI 4 and 5, MPICH, Intel MPI, NCCL, Gloo and Horovod.

    A subnet such as 10.1.0.0/16 goes to Open MPI only: the others accept only names of interfaces.
    """
    return dict.fromkeys(_SUBNET_TOO + (() if "/" in interface else _NAME_ONLY), interface)

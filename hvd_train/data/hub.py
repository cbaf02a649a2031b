"""The hub of Hugging Face: where it is, and whether this host reaches it."""

from __future__ import annotations

import os
import socket
from urllib.parse import urlsplit
from urllib.request import getproxies

ENDPOINT = "https://huggingface.co"
PATIENCE = 5.0
"""Seconds in which the hub must accept a connection. Its libraries retry for half a minute."""


def endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", ENDPOINT)


def reaches_hub() -> bool:
    """Return True if the hub accepts a connection, or a proxy stands before it."""
    if "https" in getproxies():
        return True
    address = urlsplit(endpoint())
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        with socket.create_connection((address.hostname or "", port), PATIENCE):
            return True
    except OSError:
        return False

"""Clients that post one body again and again, each as soon as it has its answer.

Usage: `python -m benchmarks.serving_load PORT CLIENTS SECONDS BODY`; prints JSON. The clients are
sockets of one thread, because they share the cores with the server that they measure.
"""

from __future__ import annotations

import json
import selectors
import socket
import sys
import time
from statistics import quantiles

HEAD = "POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n"
END = b"\r\n\r\n"


class Client:
    """One connection with a request in flight."""

    def __init__(self, port: int, request: bytes) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._request, self._answer, self._started = request, b"", 0.0

    def send(self) -> None:
        self._answer, self._started = b"", time.perf_counter()
        self.socket.sendall(self._request)

    def receive(self) -> tuple[float, bool] | None:
        """Return the seconds of the request and whether it succeeded; None if the answer is not complete."""
        piece = self.socket.recv(65536)
        self._answer += piece
        head, end, body = self._answer.partition(END)
        if piece and (not end or len(body) < _length(head)):
            return None
        return time.perf_counter() - self._started, head.startswith(b"HTTP/1.1 200 ")


def _length(head: bytes) -> int:
    start = head.lower().index(b"content-length:") + len(b"content-length:")
    return int(head[start:].partition(b"\r\n")[0])


def load(port: int, clients: int, seconds: float, body: str) -> dict[str, float]:
    """Return requests per second, percentiles of their times in ms, errors, and the load of this process."""
    request = (HEAD.format(len(body)) + body).encode()
    selector, times, errors = selectors.DefaultSelector(), [], 0
    for _ in range(clients):
        client = Client(port, request)
        selector.register(client.socket, selectors.EVENT_READ, client)
        client.send()
    started, end = time.perf_counter(), time.perf_counter() + seconds
    while time.perf_counter() < end:
        for key, _ in selector.select(1):
            client = key.data
            if (done := client.receive()) is not None:
                times.append(done[0])
                errors += not done[1]
                client.send()
    passed = time.perf_counter() - started
    cuts = quantiles(times, n=100)
    return {
        "requests": len(times),
        "per_second": len(times) / passed,
        "p50_ms": 1000 * cuts[49],
        "p99_ms": 1000 * cuts[98],
        "errors": errors,
        "client_cpu": time.process_time() / passed,
    }


if __name__ == "__main__":
    print(json.dumps(load(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), sys.argv[4])))

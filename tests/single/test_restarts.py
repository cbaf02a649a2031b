"""Which hosts are left for a restart, over a fake ssh."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cli.follow import restarts
from cli.follow.restarts import Restarts
from cli.hosts.hostfile import Host
from hvd_train.errors import UserError

HOSTS = (Host("localhost", 2), Host("up", 2), Host("down", 2), Host("hangs", 2), Host("chatty", 1))
SSH = """\
#!/bin/sh
case "$*" in
  *" down "*) echo "ssh: connect to host down port 22: No route to host" >&2; exit 255 ;;
  *" hangs "*) exec sleep 60 ;;
  *" chatty "*) echo "Welcome to chatty"; exit 3 ;;
esac
"""


@pytest.fixture(autouse=True)
def _fake_ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "ssh").write_text(SSH)
    (tmp_path / "bin" / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.setattr(restarts, "SECONDS", 2.0)


@pytest.mark.parametrize(
    ("hosts", "wanted", "fewest", "oversubscribe", "left", "ranks"),
    [
        ((), 4, 4, False, (), 4),
        (HOSTS[:2], 4, 4, False, ("localhost", "up"), 4),
        (HOSTS, 9, 3, False, ("localhost", "up", "chatty"), 5),
        (HOSTS, 4, 4, False, ("localhost", "up", "chatty"), 4),
        (HOSTS[1:3], 4, 4, True, ("up",), 4),
    ],
    ids=["no hosts", "all there", "fewer ranks", "room enough", "oversubscribed"],
)
def test_hosts_that_answer_are_left(
    hosts: tuple[Host, ...], wanted: int, fewest: int, oversubscribe: bool, left: tuple[str, ...], ranks: int
) -> None:
    """A host whose login shell returns an error has answered."""
    found, world_size = Restarts(1, fewest, oversubscribe).choose(hosts, wanted)
    assert (tuple(host.name for host in found), world_size) == (left, ranks)


@pytest.mark.parametrize(
    ("hosts", "oversubscribe", "sentence"),
    [
        (
            HOSTS[1:3],
            False,
            "cannot restart: down is lost, and 2 slots are left for 4 ranks; --min-np allows fewer ranks",
        ),
        (
            HOSTS[2:4],
            True,
            "cannot restart: down, hangs is lost, and 0 slots are left for 4 ranks; --min-np allows fewer ranks",
        ),
    ],
)
def test_a_restart_with_too_few_slots_is_refused(hosts: tuple[Host, ...], oversubscribe: bool, sentence: str) -> None:
    with pytest.raises(UserError) as error:
        Restarts(1, 4, oversubscribe).choose(hosts, 4)
    assert str(error.value) == sentence

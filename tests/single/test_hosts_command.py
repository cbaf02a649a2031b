"""The output of `ddl hosts`."""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from cli.hosts import addresses
from cli.hosts.addresses import HostfileProblem, ListedHost, Lookup, problems, resolve
from cli.hosts.hostfile import parse_lines
from cli.main import main

MIXED = "n1 slots=4 max_slots=8\nn2:2 # rack 2\n\n[fe80::1]:3\nn1\n"


@dataclass
class Shell:
    """Return a function that runs `ddl hosts` on one hostfile."""

    file: Path
    monkeypatch: pytest.MonkeyPatch
    capture: pytest.CaptureFixture[str]

    def __call__(self, *arguments: str, text: str = MIXED) -> tuple[int, str, str]:
        self.file.write_text(text)
        self.monkeypatch.setattr(sys, "argv", ["ddl", "hosts", str(self.file), *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        captured = self.capture.readouterr()
        return int(end.value.code or 0), captured.out, captured.err.replace(str(self.file), "F")


@pytest.fixture
def hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(tmp_path / "hosts.txt", monkeypatch, capsys)


def test_the_table(hosts: Shell) -> None:
    code, out, err = hosts("--no-resolve")
    assert code == 0
    assert out.splitlines() == [
        "host     slots  line  address",
        "n1           5  1,5",
        "n2           2  2",
        "fe80::1      3  4",
        "3 hosts, 10 slots",
    ]
    assert err == "ddl: warning: F: n1 is on lines 1 and 5; its slots add up to 5\n"


@pytest.mark.parametrize(
    ("dialect", "text"),
    [
        ("openmpi", "n1 slots=5\nn2 slots=2\nfe80::1 slots=3\n"),
        ("mpich", "n1:5\nn2:2\n[fe80::1]:3\n"),
        ("horovod", "n1 slots=5\nn2 slots=2\nfe80::1 slots=3\n"),
    ],
)
def test_a_dialect_goes_to_stdout_and_the_rest_to_stderr(dialect: str, text: str, hosts: Shell) -> None:
    code, out, err = hosts("--no-resolve", "--to", dialect)
    assert (code, out) == (0, text)
    assert "max_slots=8 of line 1" in err
    assert hosts("--no-resolve", "--to", dialect, text=text) == (0, text, ""), "what was written is read as it was"


def test_json(hosts: Shell) -> None:
    code, out, err = hosts("--json", text="localhost slots=2\n127.0.0.2\n")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["hosts"][0]["host"] == "localhost"
    assert "127.0.0.1" in found["hosts"][0]["addresses"]
    assert found["hosts"][1] == {"host": "127.0.0.2", "slots": 1, "lines": [2], "addresses": ["127.0.0.2"]}
    assert found["slots"] == 3
    assert [problem["level"] for problem in found["problems"]] == ["warning", "warning"]


def test_a_name_without_an_address_is_an_error(hosts: Shell) -> None:
    code, out, err = hosts(text="192.0.2.7 slots=4\nno-such-host.invalid\n")
    assert code == 1
    assert "192.0.2.7" in out
    assert err.startswith("ddl: error: F: line 2: no-such-host.invalid has no address: ")
    assert err.endswith("; correct it, or add it to /etc/hosts\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--to", "openmp"], "no dialect 'openmp'; did you mean 'openmpi'?"),
        (["--to", "mpich", "--json"], "--to and --json both select the output"),
    ],
)
def test_bad_input(arguments: list[str], words: str, hosts: Shell) -> None:
    code, out, err = hosts(*arguments)
    assert (code, out) == (2, "")
    assert words in err


def test_no_slots(hosts: Shell) -> None:
    code, _, err = hosts(text="n1\nn2 slots=0\n")
    assert code == 2
    assert "F:2: '0' is not a number of slots" in err


def test_no_file(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["ddl", "hosts", "no-such-file"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert "ddl: hosts: no-such-file cannot be read: " in capsys.readouterr().err


def entry(*found: str, lines: tuple[int, ...] = (1,), reason: str = "") -> ListedHost:
    return ListedHost(1, list(lines), Lookup(found, reason))


def test_problems() -> None:
    hosts = {
        "n1": entry("10.0.0.1"),
        "n1.site": entry("10.0.0.1", lines=(2, 9)),
        "n3": entry("127.0.1.1", lines=(3,)),
        "n4": entry("::1", lines=(4,)),
        "n5": entry(lines=(5,), reason="Name or service not known"),
        "n6": entry("127.0.1.1", lines=(6,)),
    }
    assert [problem.level for problem in problems(hosts)] == ["warning", "error", *["warning"] * 4]
    text = "\n".join(problem.text for problem in problems(hosts))
    assert "n1.site is on lines 2 and 9" in text
    assert "line 5: n5 has no address: Name or service not known" in text
    assert "line 3: n3 is 127.0.1.1, which every other host takes for itself" in text
    assert "line 4: n4 is ::1" in text
    assert "n1 and n1.site are the same machine (10.0.0.1)" in text
    assert problems({"localhost": entry("127.0.0.1", "::1")}) == [], "alone, a loopback address is right"


def test_a_name_service_that_is_away_takes_a_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()
    known = {"quick": [(0, 0, 0, "", ("10.0.0.1", 0))]}
    monkeypatch.setattr(socket, "getaddrinfo", lambda name, *_, **__: known.get(name) or ended.wait(30) or [])
    began = time.monotonic()
    found = resolve(["quick", *(f"slow{number}" for number in range(200))], seconds=0.5)
    assert time.monotonic() - began < 5
    ended.set()
    assert found["quick"].addresses == ("10.0.0.1",)
    assert found["slow199"].reason == "no answer within 0.5 seconds"


def test_many_problems_are_cut_on_the_terminal(hosts: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "problems", lambda found: [HostfileProblem("error", "x")] * 25)
    code, _, err = hosts("--no-resolve")
    assert code == 1
    assert err.count("ddl: error") == 20
    assert "and 5 more problems; --json lists all" in err


def test_five_thousand_hosts_are_parsed_and_checked_within_a_second() -> None:
    text = "".join(f"node{number} slots=8 max_slots=16  # rack\n" for number in range(5000))
    began = time.perf_counter()
    found = addresses.entries(parse_lines(text, "f"), None)
    assert problems(found) == []
    assert time.perf_counter() - began < 1
    assert len(found) == 5000

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.hosts.hostfile import (
    Host,
    check_slots,
    format_hostfile,
    format_hosts,
    lost,
    parse_hostfile,
    parse_hosts,
    stretch,
)
from hvd_train.errors import UserError

HOSTFILES = Path(__file__).parents[2] / "hostfiles"

names = st.from_regex(r"[a-z0-9_][a-zA-Z0-9_.-]{0,20}", fullmatch=True) | st.ip_addresses(v=6).map(str)
worlds = st.lists(st.builds(Host, names, st.integers(1, 999)), min_size=1, max_size=9, unique_by=lambda h: h.name)
worlds = worlds.map(tuple)


@pytest.mark.parametrize(
    ("line", "host"),
    [
        ("n1", Host("n1", 1)),
        ("n1 slots=4", Host("n1", 4)),
        ("  n1\tslots = 4  max_slots=8 # four", Host("n1", 4)),
        ("n1 max-slots=8", Host("n1", 1)),
        ("n1:4", Host("n1", 4)),
        ("n1:4 binding=core:2 ifname=eth0\r", Host("n1", 4)),
        ("10.0.0.1 slots=2", Host("10.0.0.1", 2)),
        ("fe80::1%eth0 slots=2", Host("fe80::1%eth0", 2)),
        ("[fe80::1]:2", Host("fe80::1", 2)),
        ("[fe80::1] slots=2", Host("fe80::1", 2)),
        ("me@n1:4", Host("n1", 4, "me")),
        ("n1 slots=4 user=me port=2222", Host("n1", 4, "me", 2222)),
        ("me@fe80::1 port=22", Host("fe80::1", 1, "me", 22)),
    ],
)
def test_line_of_every_dialect(line: str, host: Host) -> None:
    assert parse_hostfile(f"# hosts\n\n{line}\n", "hosts.txt") == (host,)


def test_hosts_keep_their_order_and_slots_of_one_host_add_up() -> None:
    assert parse_hostfile("b:2\na\nb slots=3\n", "f") == (Host("b", 5), Host("a", 1))
    assert parse_hosts("b:2, a ,b:3", "--hosts") == (Host("b", 5), Host("a", 1))


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("n[08-10]:2", ["n08", "n09", "n10"]),
        ("n[1-2,7]:2", ["n1", "n2", "n7"]),
        ("me@r[1-2]n[1-2].x:2", ["r1n1.x", "r1n2.x", "r2n1.x", "r2n2.x"]),
        ("a:2,n[1,3]:2,b:2", ["a", "n1", "n3", "b"]),
    ],
)
def test_ranges(text: str, names: list[str]) -> None:
    found = parse_hosts(text, "--hosts")
    assert [host.name for host in found] == names
    assert {host.slots for host in found} == {2}
    if "," not in text.partition("[")[0]:
        assert parse_hostfile(f"{text.removesuffix(':2')} slots=2\n", "f") == found
    assert {host.user for host in found} == {"me" if text.startswith("me") else ""}


@pytest.mark.parametrize("file", ["openmpi.txt", "mpich.txt", "horovod.txt"])
def test_hostfiles_of_the_repository(file: str) -> None:
    assert parse_hostfile((HOSTFILES / file).read_text(), file) == (Host("localhost", 2),)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("n1 slot=4", ["'slot=4'", "did you mean 'slots'?", "max_slots"]),
        ("n1 4", ["'4' is not a key=value setting"]),
        ("n1 slots=0", ["'0' is not a number of slots", "from 1 to 999999"]),
        ("n1 slots=-1", ["'-1'"]),
        ("n1 slots=", ["'' is not a number"]),
        ("n1 slots=٣", ["'٣'"]),
        ("n1 slots=1000000", ["'1000000'"]),
        ("n1:", ["'' is not a number"]),
        ("n1:two", ["'two'"]),
        ("n1:4 slots=4", ["slots are given twice", "'n1:4'"]),
        ("n1 slots=4 slots=4", ["slots is given twice"]),
        ("slots=4", ["'slots=4' is not a host"]),
        ("-oProxyCommand=x", ["is not a host"]),
        ("n1;reboot", ["is not a host"]),
        ("[n1]:2", ["'[n1]:2' is not a host", "[fe80::1]:4"]),
        ("[fe80::1:2", ["is not a host"]),
        ("n[1-3", ["is not a host"]),
        ("n[a-b]", ["is not a host", "n[01-16]:4"]),
        ("n[3-1]", ["a range that ends before it begins"]),
        ("n[1-9][1-999999999]", ["8999999991 hosts; expected at most 100000"]),
        ("@n1", ["is not a host"]),
        ("m e@n1", ["is not a key=value"]),
        ("-l@n1", ["is not a host"]),
        ("me@n1 user=you", ["user is given twice"]),
        ("n1 user=-l", ["'-l' is not a user"]),
        ("n1 port=0", ["'0' is not a port"]),
    ],
)
def test_bad_line_names_file_line_and_what_was_expected(line: str, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        parse_hostfile(f"n0\n\n{line}\n", "my/hosts.txt")
    assert str(caught.value).startswith("my/hosts.txt:3: ")
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("text", ["", "\n\n", "# n1\n"])
def test_empty_hostfile(text: str) -> None:
    with pytest.raises(UserError, match=r"hosts\.txt: no host in this file; expected .* n1 slots=4"):
        parse_hostfile(text, "hosts.txt")


@pytest.mark.parametrize("text", ["", "h1,", "h1,,h2", "h1:0", "h1:2:x"])
def test_bad_hosts_option(text: str) -> None:
    with pytest.raises(UserError, match=r"^--hosts: "):
        parse_hosts(text, "--hosts")


@pytest.mark.parametrize("dialect", ["openmpi", "mpich", "horovod"])
@given(hosts=worlds)
def test_hostfile_round_trip(dialect, hosts: tuple[Host, ...]) -> None:
    assert parse_hostfile(format_hostfile(hosts, dialect), "f") == hosts


def test_how_ssh_logs_in_stays_where_a_dialect_has_words_for_it() -> None:
    (host,) = parse_hostfile("me@n1:2 port=2222", "f")
    assert format_hostfile([host], "openmpi") == "n1 slots=2 user=me port=2222\n"
    assert format_hostfile([host], "mpich") == "n1:2 user=me\n"
    assert format_hostfile([host], "horovod") == "n1 slots=2\n"
    assert [lost(host, dialect) for dialect in ("openmpi", "mpich", "horovod")] == [
        (),
        ("port=2222",),
        ("user=me", "port=2222"),
    ]
    assert stretch((host,), 4) == (Host("n1", 4, "me", 2222),)
    assert parse_hosts("me@n1:2,n1", "--hosts") == (Host("n1", 3, "me"),)


@given(hosts=worlds)
def test_hosts_round_trip(hosts: tuple[Host, ...]) -> None:
    assert parse_hosts(format_hosts(hosts), "--hosts") == hosts


def test_text_of_each_dialect() -> None:
    hosts = (Host("n1", 4), Host("fe80::1", 2))
    assert format_hostfile(hosts, "openmpi") == "n1 slots=4\nfe80::1 slots=2\n"
    assert format_hostfile(hosts, "horovod") == format_hostfile(hosts, "openmpi")
    assert format_hostfile(hosts, "mpich") == "n1:4\n[fe80::1]:2\n"


@given(st.text() | st.text("n1:[]%#=., \tslots_max-\n"))
def test_any_text_parses_or_is_a_user_error(text: str) -> None:
    for parse in (parse_hostfile, parse_hosts):
        with contextlib.suppress(UserError):
            assert all(host.slots >= 1 and host.name and not host.name.startswith("-") for host in parse(text, "f"))


def test_a_thousand_lines_are_quick() -> None:
    text = "".join(f"node{i} slots=8 max_slots=16  # rack\n" for i in range(1000))
    began = time.perf_counter()
    assert len(parse_hostfile(text, "f")) == 1000
    assert time.perf_counter() - began < 0.5


def test_missing_slots_name_number_hosts_and_the_ways_out() -> None:
    check_slots((Host("n1", 2), Host("n2", 2)), 4)
    with pytest.raises(UserError) as caught:
        check_slots((Host("n1", 2), Host("n2", 1)), 5)
    message = str(caught.value)
    for word in ("5 ranks", "have 3", "2 too few", "n1: 2, n2: 1", "--np 3", "--oversubscribe"):
        assert word in message


def test_a_long_list_of_hosts_is_cut() -> None:
    with pytest.raises(UserError, match=r"n7: 1, and 92 more hosts\)"):
        check_slots(tuple(Host(f"n{i}", 1) for i in range(100)), 101)


@pytest.mark.parametrize(
    ("slots", "ranks", "stretched"),
    [((2, 2), 4, (2, 2)), ((2, 2), 3, (2, 2)), ((2, 2), 6, (3, 3)), ((1, 3), 8, (2, 6)), ((2, 2), 5, (2, 3))],
)
def test_stretch(slots: tuple[int, ...], ranks: int, stretched: tuple[int, ...]) -> None:
    hosts = tuple(Host(f"n{i}", s) for i, s in enumerate(slots))
    assert tuple(host.slots for host in stretch(hosts, ranks)) == stretched


@given(worlds, st.integers(1, 5000))
def test_stretched_hosts_have_room_and_none_shrinks(hosts: tuple[Host, ...], ranks: int) -> None:
    stretched = stretch(hosts, ranks)
    assert sum(h.slots for h in stretched) == max(ranks, sum(h.slots for h in hosts))
    assert all(after.slots >= before.slots for before, after in zip(hosts, stretched, strict=True))

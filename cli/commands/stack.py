"""`ddl stack`: where every rank of a running job is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer


def command(
    run: Annotated[Path, typer.Argument(help="Folder of a run that is under way.", show_default=False)],
) -> None:
    """Show the Python stack of every rank of a running job."""
    from concurrent.futures import ThreadPoolExecutor

    from cli.ranks import read

    ranks = read(run)
    hosts = sorted({rank["host"] for rank in ranks})
    with ThreadPoolExecutor(len(hosts)) as pool:
        asked = pool.map(lambda host: _stacks(host, [r["pid"] for r in ranks if r["host"] == host]), hosts)
        stacks = dict(zip(hosts, asked, strict=True))
    for rank in ranks:
        print(f"rank {rank['rank']} on {rank['host']}, process {rank['pid']}")
        print("".join(f"    {line}\n" for line in stacks[rank["host"]][str(rank["pid"])].strip().splitlines()))


def _stacks(host: str, pids: list[int]) -> Mapping[str, Any]:
    """By process id."""
    import subprocess

    from cli import ssh, stacks
    from cli.machine import Machine
    from hvd_train import internal

    argv = internal.argv("cli.stacks", *map(str, pids))
    if Machine.here().is_named(host):
        done = subprocess.run(argv, capture_output=True, text=True, check=True)
        return ssh.unframed(done.stdout)  # type: ignore[no-any-return]
    answer = ssh.PLAIN.ask(host, argv, 2 * ssh.CONNECT_SECONDS + stacks.SECONDS * len(pids))
    if answer.problem:
        return {str(pid): f"{answer.problem}; {answer.remedy}" for pid in pids}
    return answer.json  # type: ignore[no-any-return]

"""`ddl data fetch`: bring data sets to this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from hvd_train.text.names import find, printable


def command(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Data sets to fetch.", show_default=False)
    ] = None,
) -> None:
    """Download data sets and a model for the examples into the cache, or list them.

    A YAML file names a file of a set as fetched:NAME/FILE.
    """
    from cli.data import fetching
    from cli.output.columns import columns
    from hvd_train.config import plugins

    members = {name.replace("_", "-"): name for name in plugins.names(fetching.PACKAGE)}
    if not names:
        rows = [("name", "MB", "here", "content")]
        for name, member in members.items():
            found = plugins.create(fetching.PACKAGE, member)
            here = "yes" if fetching.is_here(name) else "no"
            rows.append((name, f"{found.size / 1e6:.0f}", here, plugins.summary(fetching.PACKAGE, member)))
        print(columns(rows))
        return
    for name in [find(word, members, "data fetch: no data set") for word in names]:
        found = plugins.create(fetching.PACKAGE, members[name])
        if fetching.is_here(name):
            print(f"{name}: {printable(fetching.folder_of(name))} is there")
            continue
        folder = fetching.fetch(name, found, print)
        print(f"{name}: licence: {found.licence}")
        print(f"{name}: {found.rows}")
        print(f"{name}: {printable(folder)} written; in a YAML file, fetched:{name}/FILE")

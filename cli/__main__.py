"""`python -m cli` is `ddl`."""

from cli.main import main

main()

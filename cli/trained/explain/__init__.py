"""The report of `ddl explain`: a table, one picture, and a page of coloured texts."""

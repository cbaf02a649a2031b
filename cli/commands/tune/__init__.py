"""Search for good values of the fields of a YAML file; each trial is a run of its own."""

DEFAULT = "search"

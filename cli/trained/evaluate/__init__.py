"""Tables and pictures of `ddl evaluate`."""

"""Tables and pictures of `ddl attack`."""

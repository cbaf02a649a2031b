"""A run that was saved: its folder, and its model."""

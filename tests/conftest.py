"""Of all tests."""

from hypothesis import settings

# A busy machine makes no example wrong.
settings.register_profile("ddl", deadline=None)
settings.load_profile("ddl")

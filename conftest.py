"""Serves this repository's own test runs only; the plugin never sees it."""

from hypothesis import settings

pytest_plugins = ["pytester"]

settings.register_profile("repository", database=None)  # its directory may not be writable; a warning is an error here
settings.load_profile("repository")

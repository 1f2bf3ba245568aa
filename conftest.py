"""Serves this repository's own test runs only; the plugin never sees it."""

from hypothesis import HealthCheck, settings

pytest_plugins = ["pytester"]

# The example database's directory may not be writable, and its warning is an error here; how fast a loaded machine
# draws examples says nothing about the code.
settings.register_profile("repository", database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("repository")

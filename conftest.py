"""Serves this repository's own test runs only; the plugin never sees it."""

pytest_plugins = ["pytester"]

"""Simulated hosts: a view recorded on a real machine, driver libraries that are really built, loaded and called."""

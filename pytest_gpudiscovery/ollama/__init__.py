"""Ollama from the outside: its eras and versions, and what its log says about a discovery that has already happened.

A library on its own: it needs neither pytest nor the stages, starts no process and reads nothing but the log it is
given and its own data files. `postmortem.explain` is the way in, `python -m pytest_gpudiscovery explain LOG` the
command.
"""

"""Ollama from the outside: the log, its lines, releases and post-mortems."""

"""The context in which Ollama's service runs: found by unit, pid or environment file, adopted as far as possible."""

"""From what the caller names as Ollama to a directory that stages can look at."""

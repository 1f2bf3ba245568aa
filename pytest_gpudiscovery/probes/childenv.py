"""The environment that Ollama gives the child in which a GPU directory is loaded."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping


def gpu_directory_environment(env: Mapping[str, str], lib: str, path: str) -> dict[str, str]:
    """Return ENV as Ollama's discovery child gets it: LD_LIBRARY_PATH begins with LIB and PATH, the GPU directory.

    Sources: v0.20.0 llm/server.go:364-409; v0.32.15 llm/llama_server.go, llamaServerLibraryPaths.
    """
    rest = [entry for entry in env.get("LD_LIBRARY_PATH", "").split(":") if entry]
    directories = (lib,) if path == lib else (lib, path)
    return {
        **env,
        "LD_LIBRARY_PATH": ":".join((*directories, *rest)),
        "OLLAMA_LIBRARY_PATH": ":".join(directories),
    }

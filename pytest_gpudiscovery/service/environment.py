"""Which variables of a service may be shown, and kept at all: an allowlist, so that no secret enters a report."""

from __future__ import annotations

import re
from collections.abc import Mapping

PREFIXES = ("LD_", "CUDA_", "OLLAMA_", "NVIDIA_", "GGML_", "HIP_", "ROCR_", "HSA_", "GPU_", "JETSON_")
NAMES = ("HOME", "PATH", "TMPDIR", "USER", "LANG", "GODEBUG", "GOMAXPROCS", "GLIBC_TUNABLES")
SECRET = re.compile(r"KEY|TOKEN|SECRET|PASS|AUTH|CREDENTIAL", re.IGNORECASE)
USER_INFO = re.compile(r"//[^/@\s]*@")  # of a URL
VALUE_LIMIT = 1000


def shown(env: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of ENV that reports may show, sorted; never one whose name speaks of a secret."""
    return {
        name: USER_INFO.sub("//***@", env[name])[:VALUE_LIMIT].encode("utf-8", "replace").decode("utf-8")
        for name in sorted(env)
        if (name in NAMES or name.startswith(PREFIXES)) and not SECRET.search(name)
    }

"""Logs of real servers: `ollama serve` 0.16.3 and 0.32.15, built from source, over the simulated driver libraries."""

from __future__ import annotations

LIB = "/usr/local/lib/ollama"
UUID = "GPU-00000000-0000-4000-8000-000000000000"


def _took(at: str, duration: str, name: str, extra: str = "map[]") -> str:
    return (
        f'time=2026-11-25T00:30:56.{at}Z level=DEBUG source=runner.go:437 msg="bootstrap discovery took" '
        f'duration={duration} OLLAMA_LIBRARY_PATH="[{LIB} {LIB}/{name}]" extra_envs={extra}'
    )


SECOND = f'"map[CUDA_VISIBLE_DEVICES:{UUID} GGML_CUDA_INIT:1]"'
LISTENING = (
    'time=2026-11-25T00:30:56.700Z level=INFO source=routes.go:1718 msg="Listening on 127.0.0.1:45222 (version 0.16.3)"'
)
DISCOVERING = 'time=2026-11-25T00:30:56.701Z level=INFO source=runner.go:67 msg="discovering available GPUs..."'
COMPUTE_B = (
    f'time=2026-11-25T00:30:56.880Z level=INFO source=types.go:42 msg="inference compute" id={UUID} filter_id="" '
    'library=CUDA compute=9.0 name=CUDA0 description="NVIDIA H100 80GB HBM3" libdirs=ollama,cuda_v13 driver=13.0 '
    'pci_id=0000:00:06.0 type=discrete total="79.6 GiB" available="79.2 GiB"'
)
HEALTHY_B = [
    "Couldn't find '/tmp/private/.ollama/id_ed25519'. Generating new private key.",
    "",
    LISTENING,
    DISCOVERING,
    "ggml_cuda_init: found 1 CUDA devices:",
    _took("755", "53.448457ms", "cuda_v12"),
    _took("817", "61.901427ms", "cuda_v13"),
    _took("878", "58.732587ms", "cuda_v12", SECOND),
    _took("880", "63.585269ms", "cuda_v13", SECOND),
    'time=2026-11-25T00:30:56.880Z level=DEBUG source=runner.go:40 msg="GPU bootstrap discovery took" '
    "duration=179.563974ms",
    COMPUTE_B,
    'time=2026-11-25T00:30:56.881Z level=INFO source=routes.go:1768 msg="vram-based default context" '
    'total_vram="79.6 GiB" default_num_ctx=262144',
]
HEALTHY_C = [
    'time=2026-11-25T01:01:43.128Z level=INFO source=routes.go:2008 msg="Listening on 127.0.0.1:45222 (version '
    '0.32.15)"',
    _took("248", "118.824647ms", "cuda_v12"),
    _took("301", "53.357132ms", "cuda_v13"),
    'time=2026-11-25T01:01:43.453Z level=DEBUG source=runner.go:42 msg="GPU bootstrap discovery took" '
    "duration=323.717209ms",
    'time=2026-11-25T01:01:43.453Z level=INFO source=types.go:32 msg="inference compute" id=0 filter_id=0 library=CUDA '
    'compute=9.0 name=CUDA0 description="NVIDIA H100 80GB HBM3" libdirs=ollama,cuda_v13 driver=13.0 '
    'pci_id=0000:00:06.0 type=discrete total="79.2 GiB" available="78.7 GiB"',
    'time=2026-11-25T01:01:43.453Z level=INFO source=routes.go:2058 msg="vram-based default context" '
    'total_vram="79.2 GiB" default_num_ctx=262144',
]
CPU_LINE = (
    'time=2026-11-25T00:30:57.880Z level=INFO source=types.go:60 msg="inference compute" id=cpu library=cpu compute="" '
    'name=cpu description=cpu libdirs=ollama driver="" pci_id="" type="" total="31.0 GiB" available="24.1 GiB"'
)
LOW_VRAM = (
    'time=2026-11-25T00:30:57.881Z level=INFO source=routes.go:1768 msg="entering low vram mode" total_vram="0 B" '
    'threshold="20.0 GiB"'
)
FAILURE = (
    "time=2026-11-25T00:30:57.700Z level=INFO source=runner.go:464 "
    f'msg="failure during GPU discovery" OLLAMA_LIBRARY_PATH="[{LIB} {LIB}/cuda_v12]" extra_envs=map[] '
    'error="failed to finish discovery before timeout"'
)
CPU = [LISTENING, DISCOVERING, FAILURE, CPU_LINE, LOW_VRAM]

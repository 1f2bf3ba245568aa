"""Faults that nobody sees in the files: constructors, IFUNC resolvers and scores that block or end the process."""

from __future__ import annotations

from pytest_gpudiscovery.simulate import changes as c
from pytest_gpudiscovery.simulate import changes_ollama as o
from pytest_gpudiscovery.simulate.fault import OLLAMA, Fault, answers, library

# library, its name in faults
PLACES = (
    ("libggml-base", "ggml_base"),
    ("libggml-cuda", "ggml_cuda"),
    ("libcudart", "ollama_cudart"),
    ("libcublas", "cublas"),
    ("libcublasLt", "cublaslt"),
)
KINDS = {
    "pause": ("hang pause", "waits for a signal for ever"),
    "spin": ("hang spin", "burns a CPU for ever"),
    "dlopen": ("hang dlopen", "waits for a thread that waits for dl_load_lock"),
    "flock": ("hang flock", "waits for a lock on a file"),
    "signals": ("hang signals", "sleeps with every signal blocked"),
    "slow": ("sleep 4", "takes 4 seconds"),
    "fork": ("fork 60", "leaves a process behind that keeps the pipes open"),
    "exit0": ("_exit 0", "calls _exit(0)"),
    "exit127": ("_exit 127", "calls _exit(127)"),
    "abort": ("abort", "calls abort()"),
    "segv": ("segv", "makes a bad memory access"),
}
BEST = "icelake"  # the CPU variant with the highest score on the simulated hosts


def faults() -> list[Fault]:
    """Return the faults of this table."""
    found = []
    for name, short in PLACES:
        value = None if name == "libggml-base" else o.ALL
        where = "" if name == "libggml-base" else ", in the GPU directory VALUE or in all"
        for kind, (actions, text) in KINDS.items():
            changes = o.with_ollama(o.constructor(name, actions))
            said = f"the constructor of {name} {text}{where}"
            found.append(answers(f"ctor.{short}.{kind}", said, *changes, value=value, needs=OLLAMA))
    for kind, (actions, text) in KINDS.items():
        variant = o.with_ollama(c.act("constructor.libggml-cpu-{value}.so", actions))
        said = f"the constructor of libggml-cpu-VALUE.so {text}"
        found.append(answers(f"ctor.ggml_cpu.{kind}", said, *variant, value=BEST, needs=OLLAMA))
        mlx = o.with_ollama(o.mlx_on_path, c.act("constructor.libmlxc", actions))
        found.append(
            answers(
                f"ctor.mlx.{kind}",
                f"the constructor of libmlxc.so, which LD_LIBRARY_PATH leads to, {text}",
                *mlx,
                needs=OLLAMA,
            )
        )
    for kind in ("pause", "segv", "abort", "exit0"):
        score = o.with_ollama(c.act("ggml_backend_score.{value}", KINDS[kind][0]))
        said = f"ggml_backend_score of libggml-cpu-VALUE.so {KINDS[kind][1]}"
        found.append(answers(f"score.ggml_cpu.{kind}", said, *score, value=BEST, needs=OLLAMA))
    none = "no variant of libggml-cpu fits the processor: every score is 0"
    found.append(
        answers("score.ggml_cpu.none", none, *o.with_ollama(c.act("ggml_backend_score", "return 0")), needs=OLLAMA)
    )
    found.append(
        library(
            "ifunc.cublaslt.hang",
            "an IFUNC resolver of libcublasLt never returns, in the GPU directory VALUE or in all",
            o.rebuilt("libcublasLt", "ifunc"),
            value=o.ALL,
            needs=OLLAMA,
        )
    )
    return found

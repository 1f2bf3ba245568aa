"""Predicts what dlopen of a library will do, and whether its device code runs; nothing that is looked at is executed.

A path on a dead file server blocks whoever asks for it, so this too runs in a supervised child.
"""

from __future__ import annotations

import os

from pytest_gpudiscovery.loader import fatbin, kernels, predict, read_architectures, render
from pytest_gpudiscovery.loader.closure import Closure
from pytest_gpudiscovery.loader.files import Root
from pytest_gpudiscovery.loader.linkmap import ProcessModel
from pytest_gpudiscovery.probes.childenv import gpu_directory_environment

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from pytest_gpudiscovery.probes.journal import Journal

PROBLEMS_KEPT = 40
DEVICE_CODE = ("libcublas.so", "libcublasLt.so")  # libraries of the closure that hold kernels, beside the backend
BUNDLED = ("libcudart.so", "libcublas.so", "libcublasLt.so", "libggml")  # what a release has of its own
JIT_COMPILER = "libnvidia-ptxjitcompiler.so.1"  # libcuda opens it at the first PTX
NOT_GPU = ("libggml-base", "libggml-cpu")


def probe(request: dict[str, Any], journal: Journal) -> dict[str, Any]:
    """Answer REQUEST["ask"]: "directory", "closure" or "fatbin"; see the function of that name."""
    return ASKED[request["ask"]](request, journal)


# --- one GPU directory -----------------------------------------------------------------------------------------------


def directory(request: dict[str, Any], journal: Journal) -> dict[str, Any]:
    """Predict the backend of one GPU directory in the processes that will open it.

    REQUEST: {"lib_dir", "path", "backend", "binary", "env", "cwd", "ccs": [[9, 0]], "driver_cuda": [13, 0] | None,
    "driver": [580, 159] | None, "root": DIRECTORY | None}. `env` is the service's; what Ollama adds for its child is
    added here. Paths are those of the service, below its root directory where that is another one.
    """
    lib, path, backend = request["lib_dir"], request["path"], request["backend"]
    root = request.get("root")
    place = Root(root)
    with journal.step(f"look for llama-server in {lib}") as step:
        servers = _servers(lib, request["binary"])
        server = next((name for name in servers if os.path.isfile(place.host(name))), None)
        step.result = server
    env, loaded = gpu_directory_environment(request["env"], lib, path), None
    if server is not None:
        with journal.step(f"list {path}"):
            loaded = gpu_backend(path, place)
        if loaded is not None:
            env["GGML_BACKEND_PATH"] = loaded
    answer: dict[str, Any] = {"server": server, "backend_path": loaded, "models": {}}
    for name, model in _models(server, request["binary"], lib, root).items():
        with journal.step(f"predict dlopen({backend}) in {name}") as step:
            closure = predict(backend, env=env, cwd=request["cwd"], process=model, root=root, shadows=name == "child")
            step.result = closure.message or closure.outcome
        answer["models"][name] = compact(closure, model.exe, lib, whole=name == "child")
        if name == "child":
            journal.observe("child", answer["models"][name])
            child, first = closure, model
    with journal.step(f"list {path} and {lib}"):
        every = (name for folder in (path, lib) for name in _names(folder, place))
        answer["shipped"] = [name for name in every if name.startswith(BUNDLED)]
    answer["fatbins"] = device_code(child, backend, env, request, journal)
    with journal.step(f"predict dlopen({JIT_COMPILER})") as step:
        compiler = predict(JIT_COMPILER, env=env, cwd=request["cwd"], process=first, root=root, shadows=False)
        step.result = compiler.message or compiler.outcome
    answer["jit_compiler"] = {"outcome": compiler.outcome, "message": compiler.message}
    with journal.step("look at the JIT cache"):
        answer["jit_cache"] = jit_cache(env, place)
    return answer


def gpu_backend(path: str, place: Root | None = None) -> str | None:
    """Return what llama-server is told to load from directory PATH: the first libggml-*.so* that is no base or CPU."""
    names = [name for name in _names(path, place or Root()) if name.startswith("libggml-") and ".so" in name]
    return next((f"{path}/{name}" for name in names if not name.startswith(NOT_GPU)), None)


def _servers(lib: str, binary: str) -> list[str]:
    here = os.path.dirname(binary)
    return [f"{lib}/llama-server", f"{here}/llama-server", f"{here}/build/lib/ollama/llama-server"]


def _models(server: str | None, binary: str, lib: str, root: str | None) -> dict[str, ProcessModel]:
    """Return the processes that open the backend: Ollama's child first, our own interpreter (not below ROOT) last."""
    limit = _address_space()
    if server is None:
        models = {"child": ProcessModel(exe=binary, address_space=limit)}
    else:
        shared = tuple((f"{lib}/{name}", True) for name in ("libggml-base.so", "libggml.so"))
        models = {
            "child": ProcessModel(exe=server, address_space=limit),
            "native": ProcessModel(exe=binary, opened=shared, address_space=limit),
        }
    if root is not None:
        return models
    exe = os.readlink("/proc/self/exe")
    models["probe"] = ProcessModel(exe=exe, opened=_mapped(exe), address_space=limit)
    return models


def _address_space() -> int | None:
    import resource  # noqa: PLC0415 (an extension module that only this stage needs)

    soft = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if soft == resource.RLIM_INFINITY else soft


def _mapped(exe: str) -> tuple[tuple[str, bool], ...]:
    """Return the libraries of this interpreter, with what ctypes brings, as dlopened before."""
    try:
        __import__("_ctypes")
    except ImportError:
        pass  # an interpreter without it has less loaded, and that is what is looked at
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as file:
        paths = [line.rstrip("\n").partition("/")[2] for line in file if "/" in line]
    found = dict.fromkeys("/" + path for path in paths if ".so" in path)
    return tuple((path, False) for path in found if path != exe)


def _names(path: str, place: Root) -> list[str]:
    try:
        return sorted(os.listdir(place.host(path)))
    except OSError:
        return []


def compact(closure: Closure, exe: str | None, lib: str, *, whole: bool) -> dict[str, Any]:
    """Return CLOSURE in few words; WHOLE with every object and name."""
    found: dict[str, Any] = {
        "exe": exe,
        "library": closure.library,
        "outcome": closure.outcome,
        "message": closure.message,
        "missing": list(closure.missing),
    }
    if not whole:
        return {**found, "files": [item.path for item in closure.objects]}
    loader = closure.loader
    outside = {item.path for item in closure.outside((lib,))}
    return {
        **found,
        "loader": loader and {"path": loader.path, "glibc": ".".join(map(str, loader.version))},
        "symbols_checked": closure.symbols_checked,
        "address_space": closure.address_space,
        "cold_bytes": sum(item.cold_bytes for item in closure.objects),
        "constructors": sum(item.constructors for item in closure.objects),
        "problems": [
            {
                "kind": item.kind,
                "outcome": item.outcome,
                "text": item.text,
                "subject": item.subject,
                "requester": item.requester,
                "follows": item.follows,
            }
            for item in closure.problems[:PROBLEMS_KEPT]
        ],
        "objects": [
            {
                "path": item.path,
                "real_path": item.real_path,
                "soname": item.soname,
                "rule": item.rule,
                "size": item.size,
                "file_system": item.file_system,
                "may_block": item.may_block,
                "truncated": item.truncated,
                "outside": item.path in outside,
            }
            for item in closure.objects
        ],
        "names": [
            {
                "name": item.name,
                "requester": os.path.basename(item.requester),
                "path": item.path,
                "rule": item.rule,
                "shadows": [list(pair) for pair in item.shadows],
            }
            for item in closure.dependencies
        ],
        "duplicates": [list(pair) for pair in closure.duplicates],
    }


def device_code(
    closure: Closure, backend: str, env: dict[str, str], request: dict[str, Any], journal: Journal
) -> list[dict[str, Any]]:
    """Return the device code of BACKEND and of CLOSURE's CUDA libraries, with a verdict per compute capability."""
    paths = [item.path for item in closure.objects if os.path.basename(item.path).startswith(DEVICE_CODE)]
    driver_cuda = _pair(request["driver_cuda"])
    runtime, place = runtime_version(closure), Root(request.get("root"))
    found = []
    for path in dict.fromkeys((backend, *paths)):
        with journal.step(f"read the device code of {path}") as step:
            images = fatbin.read_images(place.host(path))
            step.result = images.problem or sum(map(len, images.containers))
        entry = {**render.images_json(images), "path": path}
        entry.pop("verdict")
        verdicts: list[dict[str, Any]] = []
        entry["verdicts"] = verdicts
        for cc in request["ccs"]:
            capability = (int(cc[0]), int(cc[1]))
            verdict = kernels.will_run(images, capability, driver_cuda, env)
            floor = None
            if request["driver"] and runtime:
                floor = kernels.driver_floor(images, runtime, _pair(request["driver"]) or (0, 0), capability)
            said = render.verdict_json(verdict)
            verdicts.append({"cc": list(capability), "verdict": said, "driver_floor": floor})
        if path == backend:
            with journal.step(f"read the compiled architectures of {path}"):
                entry["architectures"] = list(read_architectures(place.host(path)))
        found.append(entry)
    return found


def runtime_version(closure: Closure) -> tuple[int, int] | None:
    """Return the CUDA version in the real name of CLOSURE's libcudart (libcudart.so.12.8.90), None without one."""
    for item in closure.objects:
        name = os.path.basename(item.real_path)
        if name.startswith("libcudart.so."):
            parts = name[len("libcudart.so.") :].split(".")
            if len(parts) > 1 and parts[0].isdigit() and parts[1].isdigit():
                return int(parts[0]), int(parts[1])
    return None


def _pair(value: Any) -> tuple[int, int] | None:
    return (int(value[0]), int(value[1])) if value else None


def jit_cache(env: dict[str, str], root: Root) -> dict[str, Any]:
    """Return {"path", "disabled", "writable"} of the CUDA JIT cache that ENV means; `path` None: there is no place."""
    disabled = env.get("CUDA_CACHE_DISABLE", "0") not in ("", "0")
    home = env.get("HOME")
    path = env.get("CUDA_CACHE_PATH") or (f"{home}/.nv/ComputeCache" if home else None)
    place = path
    while place and not root.exists(place) and os.path.dirname(place) != place:
        place = os.path.dirname(place)
    there = root.host(place) if place else ""
    writable = bool(there) and os.path.isdir(there) and os.access(there, os.W_OK | os.X_OK)
    return {"path": path, "disabled": disabled, "writable": writable}


# --- for people: gpu-discovery closure, gpu-discovery fatbin ---------------------------------------------------------


def closure(request: dict[str, Any], journal: Journal) -> dict[str, Any]:
    """Predict one dlopen. REQUEST: {"library", "env", "cwd", "exe": path | None, "explain": name | None}."""
    library = request["library"]
    with journal.step(f"look for {library}"):
        # A bare name is looked for as ld.so does, unless such a file lies right here: what a user of ldd expects.
        here = os.path.join(request["cwd"], library)
        if os.path.lexists(here):
            library = here
    with journal.step(f"predict dlopen({library})"):
        found = predict(library, env=request["env"], cwd=request["cwd"], exe=request["exe"])
    with journal.step("look beside it for what is missing"):
        near = nearby(library, found.missing)
    name = request["explain"]
    asked = found.of(name) if name else None
    return {
        "outcome": found.outcome,
        "json": render.closure_json(found),
        "text": render.explain_text(found, name) if name else render.closure_text(found, near),
        "known": asked is not None,
        "used": asked.path if asked is not None else None,
    }


def nearby(library: str, missing: tuple[str, ...]) -> tuple[str, ...]:
    """Return the files called as one of the MISSING, in LIBRARY's directory or the one above."""
    if "/" not in library:
        return ()
    here = os.path.dirname(os.path.realpath(library))
    places = [
        os.path.join(place, name) for name in missing if "/" not in name for place in (here, os.path.dirname(here))
    ]
    return tuple(path for path in places if os.path.isfile(path))


def fatbin_of(request: dict[str, Any], journal: Journal) -> dict[str, Any]:
    """List the device code of one file.

    REQUEST: {"library", "cwd", "env", "cc": [9, 0] | None, "driver_cuda": [13, 0] | None}.
    """
    path = os.path.join(request["cwd"], request["library"])
    with journal.step(f"read {path}"):
        images = fatbin.read_images(path)
        architectures = read_architectures(path)
    capability, verdict = _pair(request["cc"]), None
    readable = bool(images.images) or not images.problem
    if capability is not None and readable:
        verdict = kernels.will_run(images, capability, _pair(request["driver_cuda"]), request["env"])
    return {
        "runs": None if verdict is None else verdict.runs,
        "how": None if verdict is None else verdict.how,
        "readable": readable,
        "json": {**render.images_json(images, verdict), "architectures": list(architectures)},
        "text": render.images_text(images, verdict, architectures),
    }


ASKED: dict[str, Callable[[dict[str, Any], Journal], dict[str, Any]]] = {
    "directory": directory,
    "closure": closure,
    "fatbin": fatbin_of,
}

"""What dlopen would do, without doing it: a library on its own, standard library only.

predict(library, env=..., exe=...)      -> Closure: outcome, files, rules, every objection in ld.so's own words
read_images(path)                       -> Images: the device code of a CUDA library: kind, SM, PTX ISA, compression
will_run(images, cc, driver_cuda)       -> KernelVerdict: natively, by JIT, or not at all

Modules are imported when a name of theirs is first asked for: importing all of them takes as long as reading the
device code of a 700 MB library.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pytest_gpudiscovery.loader.architectures import read_architectures
    from pytest_gpudiscovery.loader.closure import Closure, Dependency, LoadedObject, Problem, predict
    from pytest_gpudiscovery.loader.fatbin import Image, Images, read_images
    from pytest_gpudiscovery.loader.kernels import KernelVerdict, will_run
    from pytest_gpudiscovery.loader.linkmap import ProcessModel

__all__ = [
    "Closure",
    "Dependency",
    "Image",
    "Images",
    "KernelVerdict",
    "LoadedObject",
    "Problem",
    "ProcessModel",
    "predict",
    "read_architectures",
    "read_images",
    "will_run",
]

MODULES = {
    "architectures": ("read_architectures",),
    "closure": ("Closure", "Dependency", "LoadedObject", "Problem", "predict"),
    "fatbin": ("Image", "Images", "read_images"),
    "kernels": ("KernelVerdict", "will_run"),
    "linkmap": ("ProcessModel",),
}


def __getattr__(name: str) -> object:
    for module, names in MODULES.items():
        if name in names:
            # Not importlib's import_module: that package takes another millisecond.
            return getattr(__import__(f"{__name__}.{module}", fromlist=[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""What dlopen would do, without doing it: a library on its own, standard library only.

predict(library, env=..., exe=...)      -> Closure: outcome, files, rules, every objection in ld.so's own words
read_images(path)                       -> Images: the device code of a CUDA library: kind, SM, PTX ISA, compression
will_run(images, cc, driver_cuda)       -> KernelVerdict: natively, by JIT, or not at all
"""

from __future__ import annotations

from pytest_gpudiscovery.loader.closure import Closure, Dependency, LoadedObject, Problem, predict
from pytest_gpudiscovery.loader.fatbin import Image, Images, read_architectures, read_images
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

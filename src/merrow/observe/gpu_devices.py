"""Which NVIDIA GPUs models may run on: asked of the CUDA driver, when there is one. Blocks; once at start-up.

The driver's library is loaded at run time, so that nothing is needed where there is no GPU. `CUDA_VISIBLE_DEVICES` is
obeyed by the library itself, and the numbers are those that runtimes use.

Source: NVIDIA, CUDA driver API; Triton, core/src/cuda_utils.cc: GetSupportedGPUs.
"""

import ctypes
import logging
from collections.abc import Sequence
from typing import Any

_LOG = logging.getLogger("merrow.observe.gpu_devices")

LIBRARY_NAMES = ("libcuda.so.1", "nvcuda.dll")

_SUCCESS = 0
_COMPUTE_CAPABILITY_MAJOR = 75
_COMPUTE_CAPABILITY_MINOR = 76


def find_gpus(min_compute_capability: float, library_names: Sequence[str] = LIBRARY_NAMES) -> tuple[int, ...]:
    """The numbers of the GPUs with at least this compute capability; none where there is no driver."""
    for name in library_names:
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        return count_gpus(library, min_compute_capability)
    return ()


def count_gpus(library: Any, min_compute_capability: float) -> tuple[int, ...]:
    """The same, of a library that is loaded."""
    count = ctypes.c_int()
    if library.cuInit(0) != _SUCCESS or library.cuDeviceGetCount(ctypes.byref(count)) != _SUCCESS:
        return ()
    found: list[int] = []
    for number in range(count.value):
        device = ctypes.c_int()
        if library.cuDeviceGet(ctypes.byref(device), number) != _SUCCESS:
            continue
        version = [
            _attribute(library, device, which) for which in (_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR)
        ]
        capability = version[0] + version[1] / 10
        if capability >= min_compute_capability:
            found.append(number)
        else:
            _LOG.warning(
                "GPU %d is not used: its compute capability %.1f is less than %.1f",
                number,
                capability,
                min_compute_capability,
            )
    return tuple(found)


def _attribute(library: Any, device: ctypes.c_int, which: int) -> int:
    value = ctypes.c_int()
    return value.value if library.cuDeviceGetAttribute(ctypes.byref(value), which, device) == _SUCCESS else 0

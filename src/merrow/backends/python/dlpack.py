"""DLPack capsules, for datatypes that numpy has and for those that it has not.

numpy makes and consumes the capsules; where it does not know a type (BF16, and BOOL before numpy 2) the capsule is made
of unsigned integers of the same size and the type in it is rewritten, before anyone else has seen it.

Source: dmlc/dlpack, include/dlpack/dlpack.h.
"""

import ctypes
from typing import Any

import numpy as np

from merrow.backends.python.pb_errors import TritonModelException

Array = np.ndarray[Any, np.dtype[Any]]

CPU_DEVICE = (1, 0)

_CAPSULE_NAME = b"dltensor"
_CPU = 1
_CUDA = 2
_CUDA_HOST = 3

_TYPE_CODES = {"INT": 0, "UINT": 1, "FP": 2, "BF": 4, "BOOL": 6}
# Code and bits -> datatype.
_DATATYPES = {
    **{(0, bits): f"INT{bits}" for bits in (8, 16, 32, 64)},
    **{(1, bits): f"UINT{bits}" for bits in (8, 16, 32, 64)},
    **{(2, bits): f"FP{bits}" for bits in (16, 32, 64)},
    (4, 16): "BF16",
    (6, 8): "BOOL",
}
# Types that travel through numpy as another: the code to say in the capsule, and numpy's dtype meanwhile.
_DISGUISED = {"BF16": (_TYPE_CODES["BF"], np.uint16), "BOOL": (_TYPE_CODES["BOOL"], np.uint8)}


class _Device(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int), ("id", ctypes.c_int))


class _DataType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


def export_array(array: Array, datatype: str) -> Any:
    """A capsule over the array's memory, which lives as long as the capsule or its consumer.

    Args:
        array: of the datatype; for BF16, of bytes, with one last dimension of 2.
    """
    if datatype not in _DISGUISED:
        return array.__dlpack__()
    code, dtype = _DISGUISED[datatype]
    plain = array.view(dtype).reshape(array.shape[:-1]) if datatype == "BF16" else array.view(dtype)
    capsule = plain.__dlpack__()
    _tensor_in(capsule).dtype.code = code
    return capsule


def import_tensor(provider: Any) -> tuple[str, Array]:
    """Take a capsule, or what makes one.

    Returns:
        The datatype, and an array over the provider's memory; for BF16 of bytes, with one last dimension of 2.

    Raises:
        TritonModelException: it is no DLPack tensor, or one that cannot be a tensor of a model.
    """
    capsule = _capsule_of(provider)
    tensor = _tensor_in(capsule)
    if tensor.device.type == _CUDA:
        raise TritonModelException(
            "DLPack tensors in GPU memory cannot leave a model here: move the tensor to the CPU."
        )
    if tensor.device.type not in (_CPU, _CUDA_HOST):
        raise TritonModelException(f"DLDevice type {tensor.device.type} is not support by Python backend.")
    if not _is_contiguous(tensor):
        raise TritonModelException(
            "DLPack tensor is not contiguous. Only contiguous DLPack tensors that are stored in C-Order are supported."
        )
    datatype = _DATATYPES.get((tensor.dtype.code, tensor.dtype.bits)) if tensor.dtype.lanes == 1 else None
    if datatype is None:
        raise TritonModelException(
            f"DLPack dtype with code {tensor.dtype.code}, {tensor.dtype.bits} bits and {tensor.dtype.lanes} lanes "
            "is not supported."
        )
    if datatype in _DISGUISED:
        tensor.dtype.code = _TYPE_CODES["UINT"]
    # Pinned memory is memory of the CPU.
    tensor.device.type = _CPU
    array: Array = np.from_dlpack(_Provider(capsule))
    if datatype == "BOOL":
        array = array.view(np.bool_)
    elif datatype == "BF16":
        array = array.reshape((*array.shape, 1)).view(np.uint8)
    return datatype, array


class _Provider:
    """Gives numpy a capsule, once."""

    def __init__(self, capsule: Any) -> None:
        self._capsule = capsule

    def __dlpack__(self, **_: Any) -> Any:
        return self._capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return CPU_DEVICE


def _capsule_of(provider: Any) -> Any:
    if type(provider).__name__ == "PyCapsule":
        capsule = provider
    elif hasattr(provider, "__dlpack__") and hasattr(provider, "__dlpack_device__"):
        capsule = provider.__dlpack__()
    else:
        capsule = None
    is_valid = ctypes.pythonapi.PyCapsule_IsValid
    is_valid.argtypes = (ctypes.py_object, ctypes.c_char_p)
    is_valid.restype = ctypes.c_int
    if capsule is None or not is_valid(capsule, _CAPSULE_NAME):
        raise TritonModelException(
            "Provided tensor is not supported. Tensor must be a DLPack capsule "
            "        or have `__dlpack__` and `__dlpack_device__` attributes"
        )
    return capsule


def _tensor_in(capsule: Any) -> _Tensor:
    get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
    get_pointer.argtypes = (ctypes.py_object, ctypes.c_char_p)
    get_pointer.restype = ctypes.c_void_p
    return _Tensor.from_address(get_pointer(capsule, _CAPSULE_NAME))


def _is_contiguous(tensor: _Tensor) -> bool:
    shape = [tensor.shape[index] for index in range(tensor.ndim)]
    if not tensor.strides or 0 in shape:
        return True
    expected = 1
    for index in reversed(range(tensor.ndim)):
        if shape[index] != 1 and tensor.strides[index] != expected:
            return False
        expected *= shape[index]
    return True

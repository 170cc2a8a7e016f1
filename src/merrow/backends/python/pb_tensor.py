"""`pb_utils.Tensor`: a named array, as models see it.

Source: Triton, python_backend/src/pb_tensor.cc.
"""

from typing import Any

import numpy as np

from merrow.backends.base import PrivateTensor
from merrow.backends.python.dlpack import CPU_DEVICE, Array, export_array, import_tensor
from merrow.backends.python.pb_errors import C_MODULE, TritonModelException, incompatible_arguments
from merrow.core import tensor as core
from merrow.core.datatypes import BYTES, CONFIG_TYPE_NUMBERS, CONFIG_TYPES, NUMPY_DTYPES, datatype_of_numpy

_BF16 = "BF16"
_SIGNATURE = f"{C_MODULE}.Tensor(arg0: str, arg1: numpy.ndarray)"

# Below this, copying an array's bytes costs less than making a view of them.
_SMALL = 8192


class Tensor:
    """A tensor of a request or a response.

    It holds an array, or the encoded tensor as it came, of which the array is made when somebody asks.
    """

    __module__ = C_MODULE
    __slots__ = ("_array", "_datatype", "_encoded", "_name")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if len(args) != 2 or kwargs or not isinstance(args[0], str) or not isinstance(args[1], np.ndarray):
            raise incompatible_arguments(_SIGNATURE, args, kwargs)
        name, array = args
        if not name:
            raise TritonModelException("Tensor name cannot be an empty string.")
        datatype = datatype_of_numpy(array.dtype)
        if datatype is None:
            raise TritonModelException("NumPy dtype is not supported.")
        if not array.flags.c_contiguous:
            array = np.ascontiguousarray(array)
        self._name: str = name
        self._array: Array | None = array
        self._datatype = datatype
        self._encoded: core.Tensor | None = None

    def name(self) -> str:
        return self._name

    def shape(self) -> list[int]:
        if self._encoded is not None:
            return list(self._encoded.shape)
        assert self._array is not None
        return list(self._array.shape)

    def triton_dtype(self) -> int:
        """The number of the datatype in `model_config.proto`."""
        return CONFIG_TYPE_NUMBERS[CONFIG_TYPES[self._datatype]]

    def is_cpu(self) -> bool:
        return True

    def as_numpy(self) -> Array:
        """The array, the same each time. Writable; of BYTES, an object array of `bytes`."""
        array = self._array
        if array is None:
            encoded = self._encoded
            assert encoded is not None
            if self._datatype == _BF16:
                raise TritonModelException(
                    "Tensor dtype is BF16 and cannot be converted to NumPy. Use to_dlpack() and from_dlpack() instead."
                )
            if self._datatype == BYTES:
                array = encoded.as_numpy()
            else:
                array = np.ndarray(encoded.shape, NUMPY_DTYPES[self._datatype], encoded.data)
                if not isinstance(encoded, PrivateTensor):
                    # Others see these bytes too: the model gets its own.
                    array = array.copy()
            self._array = array
        return array

    def to_dlpack(self) -> Any:
        """A DLPack capsule over the tensor's memory."""
        if self._datatype == BYTES:
            raise TritonModelException("DLPack does not have support for string tensors.")
        if self._datatype == _BF16:
            assert self._encoded is not None
            data = np.frombuffer(self._encoded.data, np.uint8)
            if not isinstance(self._encoded, PrivateTensor):
                data = data.copy()
            return export_array(data.reshape((*self._encoded.shape, 2)), _BF16)
        return export_array(self.as_numpy(), self._datatype)

    @staticmethod
    def from_dlpack(name: str, provider: Any) -> "Tensor":
        """A tensor over the memory of a DLPack capsule, or of what has `__dlpack__`."""
        if not name:
            raise TritonModelException("Tensor name cannot be an empty string.")
        datatype, array = import_tensor(provider)
        if datatype == _BF16:
            data = memoryview(array.reshape(-1))  # type: ignore[arg-type,unused-ignore]  # see below
            return tensor_of_input(PrivateTensor(name, _BF16, array.shape[:-1], data))
        return Tensor(name, array)

    def __dlpack__(
        self, *, stream: Any = None, max_version: Any = None, dl_device: Any = None, copy: Any = None
    ) -> Any:
        return self.to_dlpack()

    def __dlpack_device__(self) -> tuple[int, int]:
        return CPU_DEVICE


def tensor_of_input(encoded: core.Tensor) -> Tensor:
    """The tensor of a request, undecoded."""
    tensor: Tensor = object.__new__(Tensor)
    tensor._name = encoded.name
    tensor._array = None
    tensor._datatype = encoded.datatype
    tensor._encoded = encoded
    return tensor


def encode_output(tensor: Tensor) -> core.Tensor:
    """The tensor as it travels: a view of the array where it is large, and of what came in where nobody decoded it."""
    array = tensor._array
    if array is None:
        encoded = tensor._encoded
        assert encoded is not None
        return core.Tensor(tensor._name, encoded.datatype, encoded.shape, encoded.data)
    datatype = tensor._datatype
    if datatype == BYTES:
        return core.Tensor(tensor._name, BYTES, array.shape, core.encode_bytes_elements(array))
    if array.nbytes <= _SMALL:
        return core.Tensor(tensor._name, datatype, array.shape, array.tobytes())
    flat = array.reshape(-1).view(np.uint8)
    # numpy's types for Python 3.10 do not say that arrays are buffers.
    return core.Tensor(tensor._name, datatype, array.shape, memoryview(flat))  # type: ignore[arg-type,unused-ignore]


def copy_output(output: core.Tensor) -> core.Tensor:
    """The tensor with bytes of its own, if it is a view of an array."""
    if not isinstance(output.data, memoryview):
        return output
    return core.Tensor(output.name, output.datatype, output.shape, bytes(output.data))

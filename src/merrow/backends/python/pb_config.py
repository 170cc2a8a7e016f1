"""`pb_utils.ModelConfig`, the datatypes' tables, and the functions over a configuration in JSON.

Source: Triton, python_backend/src/resources/triton_python_backend_utils.py.
"""

import json
import struct
from typing import Any

import numpy as np

from merrow.core.tensor import encode_bytes_elements

TRITON_STRING_TO_NUMPY: dict[str, Any] = {
    "TYPE_BOOL": bool,
    "TYPE_UINT8": np.uint8,
    "TYPE_UINT16": np.uint16,
    "TYPE_UINT32": np.uint32,
    "TYPE_UINT64": np.uint64,
    "TYPE_INT8": np.int8,
    "TYPE_INT16": np.int16,
    "TYPE_INT32": np.int32,
    "TYPE_INT64": np.int64,
    "TYPE_FP16": np.float16,
    "TYPE_FP32": np.float32,
    "TYPE_FP64": np.float64,
    "TYPE_STRING": np.object_,
}

# The numbers are those of `model_config.proto`, from 1.
_NUMPY_OF_NUMBER = dict(enumerate(TRITON_STRING_TO_NUMPY.values(), start=1))
_NUMBER_OF_NUMPY = {np.dtype(numpy_type): number for number, numpy_type in _NUMPY_OF_NUMBER.items()}


def triton_string_to_numpy(triton_type_string: str) -> Any:
    """`"TYPE_FP32"` -> `numpy.float32`; KeyError for a type that numpy lacks."""
    return TRITON_STRING_TO_NUMPY[triton_type_string]


def triton_to_numpy_type(data_type: int) -> Any:
    """The numpy type of a datatype's number; None if there is none."""
    return _NUMPY_OF_NUMBER.get(data_type)


def numpy_to_triton_type(data_type: Any) -> int | None:
    """The number of a numpy type's datatype; None if there is none."""
    if data_type is None:
        return None
    if data_type is np.bytes_:
        return _NUMBER_OF_NUMPY[np.dtype(np.object_)]
    try:
        dtype = np.dtype(data_type)
    except TypeError:
        return None
    return _NUMBER_OF_NUMPY.get(dtype)


def serialize_byte_tensor(input_tensor: "np.ndarray[Any, np.dtype[Any]]") -> Any:
    """Encode a BYTES array: length-prefixed elements; `()` for an empty one, None for another dtype."""
    if input_tensor.size == 0:
        return ()
    if input_tensor.dtype == np.object_ or input_tensor.dtype.type == np.bytes_:
        return encode_bytes_elements(input_tensor)
    return None


def deserialize_bytes_tensor(encoded_tensor: bytes) -> "np.ndarray[Any, np.dtype[Any]]":
    """Decode length-prefixed elements into a one-dimensional object array of `bytes`."""
    elements: list[bytes] = []
    position = 0
    while position < len(encoded_tensor):
        (length,) = struct.unpack_from("<I", encoded_tensor, position)
        position += 4
        (element,) = struct.unpack_from(f"<{length}s", encoded_tensor, position)
        position += length
        elements.append(element)
    return np.array(elements, dtype=np.object_)


def get_input_config_by_name(model_config: dict[str, Any], name: str) -> Any:
    """The dict of an input in a parsed configuration, or None."""
    return _find(model_config.get("input", ()), name)


def get_output_config_by_name(model_config: dict[str, Any], name: str) -> Any:
    """The dict of an output in a parsed configuration, or None."""
    return _find(model_config.get("output", ()), name)


def using_decoupled_model_transaction_policy(model_config: dict[str, Any]) -> bool:
    """Whether a parsed configuration is of a decoupled model."""
    return bool(model_config.get("model_transaction_policy", {}).get("decoupled", False))


class ModelConfig:
    """What `auto_complete_config` completes: the configuration as a dict, changed in place."""

    def __init__(self, model_config: str) -> None:
        self._model_config: dict[str, Any] = json.loads(model_config)

    def as_dict(self) -> dict[str, Any]:
        """The dict itself."""
        return self._model_config

    def set_max_batch_size(self, max_batch_size: int) -> None:
        """Raises ValueError if a larger size was configured."""
        configured = self._model_config["max_batch_size"]
        if configured > max_batch_size:
            raise ValueError(
                f"configuration specified max_batch_size {configured}, but in {self._function} "
                f"specified max_batch_size {max_batch_size}"
            )
        self._model_config["max_batch_size"] = max_batch_size

    def set_dynamic_batching(self) -> None:
        """Raises ValueError if another scheduler was configured."""
        for scheduler in ("sequence_batching", "ensemble_scheduling"):
            if scheduler in self._model_config:
                raise ValueError(
                    f"Configuration specified scheduling_choice as '{scheduler}', but {self._function} "
                    "tries to set scheduling_choice as 'dynamic_batching'"
                )
        self._model_config.setdefault("dynamic_batching", {})

    def set_model_transaction_policy(self, transaction_policy_dict: dict[str, Any]) -> None:
        """Raises ValueError for properties other than `decoupled`, or if it was configured otherwise."""
        if any(key != "decoupled" for key in transaction_policy_dict):
            raise ValueError(
                f"model transaction property in {self._function} contains property other than 'decoupled'."
            )
        policy = self._model_config.setdefault("model_transaction_policy", {})
        if "decoupled" in transaction_policy_dict:
            decoupled = transaction_policy_dict["decoupled"]
            if policy.get("decoupled", decoupled) != decoupled:
                raise ValueError(
                    "trying to change decoupled property in auto-complete-config for model "
                    f"'{self._model_config['name']}', which is already set to '{policy['decoupled']}'."
                )
            policy["decoupled"] = decoupled

    def add_input(self, input: dict[str, Any]) -> None:  # the name that models use
        """Add an input, or complete the one of this name; raises ValueError if they contradict each other."""
        self._add("input", input, ("name", "data_type", "dims", "optional"))

    def add_output(self, output: dict[str, Any]) -> None:
        """Add an output, or complete the one of this name; raises ValueError if they contradict each other."""
        self._add("output", output, ("name", "data_type", "dims"))

    @property
    def _function(self) -> str:
        return f"auto-complete-config function for model '{self._model_config['name']}'"

    def _add(self, kind: str, tensor: dict[str, Any], allowed: tuple[str, ...]) -> None:
        model_name = self._model_config["name"]
        for key in tensor:
            if key not in allowed:
                names = [f"'{name}'" for name in allowed]
                raise ValueError(
                    f"{kind} '{tensor['name']}' in {self._function} contains property other than "
                    f"{', '.join(names[:-1])} and {names[-1]}."
                )
        if "name" not in tensor:
            raise ValueError(f"{kind} in {self._function} is missing 'name' property.")
        name = tensor["name"]
        for key in ("data_type", "dims"):
            if key not in tensor:
                raise ValueError(f"{kind} '{name}' in {self._function} is missing '{key}' property.")
        configured = _find(self._model_config[kind], name)
        if configured is None:
            self._model_config[kind].append(tensor)
            return
        if configured["data_type"] not in ("TYPE_INVALID", tensor["data_type"]):
            raise ValueError(
                f"unable to load model '{model_name}', configuration expects datatype {configured['data_type']} "
                f"for {kind} '{name}', model provides {tensor['data_type']}"
            )
        if configured["dims"] and configured["dims"] != tensor["dims"]:
            raise ValueError(
                f"model '{model_name}', tensor '{name}': the model expects dims {tensor['dims']} "
                f"but the model configuration specifies dims {configured['dims']}"
            )
        # Only where both say something: the configuration as JSON always does.
        if "optional" in tensor and configured.get("optional", tensor["optional"]) != tensor["optional"]:
            raise ValueError(
                f"model '{model_name}', tensor '{name}': the model expects optional {tensor['optional']} "
                f"but the model configuration specifies optional {configured['optional']}"
            )
        configured.update(tensor)


def _find(tensors: Any, name: str) -> Any:
    for tensor in tensors:
        if tensor["name"] == name:
            return tensor
    return None

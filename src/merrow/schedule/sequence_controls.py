"""What a model is told about the sequence a request belongs to: tensors added to its inputs.

START, END and READY carry one of two configured values; CORRID carries the correlation id, integers cut to the width of
its datatype. Each has shape [1], or [1, 1] where the model batches.

Source: Triton, model_configuration.md, "Control Inputs"; sequence_batch_scheduler.cc.
"""

import struct
from collections.abc import Mapping

from merrow.core.datatypes import BYTES, DATATYPES_OF_CONFIG, ELEMENT_BYTE_SIZES
from merrow.core.errors import InvalidArgumentError
from merrow.core.model_config import ModelConfig, ModelSequenceBatchingControl
from merrow.core.request import SEQUENCE_END, SEQUENCE_START, Request
from merrow.core.tensor import Tensor

_LENGTH = struct.Struct("<I")

_START = "CONTROL_SEQUENCE_START"
_END = "CONTROL_SEQUENCE_END"
_READY = "CONTROL_SEQUENCE_READY"
_CORRID = "CONTROL_SEQUENCE_CORRID"


class SequenceControls:
    """The control inputs of one model."""

    def __init__(self, config: ModelConfig) -> None:
        batching = config.sequence_batching
        assert batching is not None
        self._model_name = config.name
        self._shape = (1, 1) if config.max_batch_size else (1,)
        # (tensor for false, tensor for true) of each control that a model asks for.
        self._values: dict[str, tuple[Tensor, Tensor]] = {}
        self._correlation_id: tuple[str, str] | None = None
        for control_input in batching.control_input:
            for control in control_input.control:
                if control.kind == _CORRID:
                    self._correlation_id = (control_input.name, DATATYPES_OF_CONFIG[control.data_type])
                else:
                    self._values[control.kind] = self._boolean(control_input.name, control)

    def check_correlation_id(self, request: Request) -> None:
        """Refuse a correlation id that the model's control cannot carry."""
        correlation_id = request.correlation_id
        if self._correlation_id is None or not correlation_id:
            return
        name, datatype = self._correlation_id
        if isinstance(correlation_id, str) != (datatype == BYTES):
            given = BYTES if isinstance(correlation_id, str) else "UINT64"
            raise InvalidArgumentError(
                f"{request.log_prefix}sequence batching control '{name}' data-type is '{given}', but model "
                f"'{self._model_name}' expects '{datatype}'"
            )

    def of(self, request: Request) -> dict[str, Tensor]:
        """The tensors for a request that is about to run."""
        flags = request.flags
        return self._tensors(
            {_START: bool(flags & SEQUENCE_START), _END: bool(flags & SEQUENCE_END), _READY: True},
            request.correlation_id,
        )

    def of_padding(self) -> dict[str, Tensor]:
        """The tensors for a row that no request has: nothing is true, and the correlation id is 0."""
        return self._tensors({_START: False, _END: False, _READY: False}, 0)

    def _tensors(self, truths: Mapping[str, bool], correlation_id: int | str) -> dict[str, Tensor]:
        tensors = {}
        for kind, values in self._values.items():
            tensor = values[truths[kind]]
            tensors[tensor.name] = tensor
        if self._correlation_id is not None:
            name, datatype = self._correlation_id
            tensors[name] = Tensor(name, datatype, self._shape, _encode_correlation_id(correlation_id, datatype))
        return tensors

    def _boolean(self, name: str, control: ModelSequenceBatchingControl) -> tuple[Tensor, Tensor]:
        if control.int32_false_true:
            datatype, pieces = "INT32", [struct.pack("<i", value) for value in control.int32_false_true]
        elif control.fp32_false_true:
            datatype, pieces = "FP32", [struct.pack("<f", value) for value in control.fp32_false_true]
        else:
            datatype, pieces = "BOOL", [struct.pack("<?", value) for value in control.bool_false_true]
        false, true = (Tensor(name, datatype, self._shape, piece) for piece in pieces)
        return false, true


def _encode_correlation_id(correlation_id: int | str, datatype: str) -> bytes:
    if datatype == BYTES:
        element = correlation_id.encode() if isinstance(correlation_id, str) else b""
        return _LENGTH.pack(len(element)) + element
    assert isinstance(correlation_id, int)
    return (correlation_id & 0xFFFF_FFFF_FFFF_FFFF).to_bytes(8, "little")[: ELEMENT_BYTE_SIZES[datatype]]

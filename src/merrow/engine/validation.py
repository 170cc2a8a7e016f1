"""What a request must be before it may enter a model's queue, and what a response becomes on its way out.

Every rule, its order and its text are Triton's (infer_request.cc, Normalize). The common case is one dictionary
look-up per input: shapes that passed once are remembered per input, with the rows and byte size they imply. Only a
request that is not remembered, or is wrong, takes the long way.
"""

import struct
from collections.abc import Hashable, Sequence

from merrow.core.datatypes import BYTES, DATATYPES_OF_CONFIG, ELEMENT_BYTE_SIZES
from merrow.core.errors import InvalidArgumentError
from merrow.core.model_config import ModelConfig, ModelInput, ModelOutput
from merrow.core.request import Request
from merrow.core.response import Response
from merrow.core.tensor import Buffer, Tensor, element_count

_MAX_KNOWN_SHAPES = 1024
_MAX_INT64 = 2**63 - 1
_LENGTH = struct.Struct("<I")

_BATCH_NOTE = (
    "NOTE: Setting a non-zero max_batch_size in the model config requires a batch dimension to be prepended to each "
    "input shape. If you want to specify the full shape including the batch dim in your input dims config, try setting "
    "max_batch_size to zero. See the model configuration docs for more info on max_batch_size."
)


class _KnownShape:
    """A valid shape of one input: the rows it means, its bytes (None for BYTES), and the shape the model sees."""

    __slots__ = ("byte_size", "element_count", "model_shape", "rows")

    def __init__(self, rows: int, elements: int, byte_size: int | None, model_shape: tuple[int, ...]) -> None:
        self.rows = rows
        self.element_count = elements
        self.byte_size = byte_size
        self.model_shape = model_shape


class _InputRule:
    """One input of the configuration."""

    __slots__ = ("datatype", "dims", "is_optional", "is_shape_tensor", "known_shapes", "must_match", "name", "reshape")

    def __init__(self, config: ModelInput) -> None:
        self.name = config.name
        self.datatype = DATATYPES_OF_CONFIG.get(config.data_type, "<invalid>")
        self.dims = tuple(config.dims)
        self.is_optional = config.optional
        self.is_shape_tensor = config.is_shape_tensor
        # Requests that share a batch must agree on this input's shape.
        self.must_match = -1 in self.dims and not config.allow_ragged_batch
        self.reshape = None if config.reshape is None else tuple(config.reshape.shape)
        self.known_shapes: dict[tuple[int, ...], _KnownShape] = {}


class RequestValidator:
    """The rules of one model version."""

    def __init__(self, config: ModelConfig) -> None:
        self._model_name = config.name
        self._max_batch_size = config.max_batch_size
        self._rules = {model_input.name: _InputRule(model_input) for model_input in config.input}
        self._required_count = sum(not model_input.optional for model_input in config.input)
        self._has_optional = self._required_count != len(config.input)
        # Turning shapes in place must wait until every input has passed: only the long way does that.
        self._has_reshape = any(rule.reshape is not None for rule in self._rules.values())
        self._output_names = frozenset(model_output.name for model_output in config.output)

    def validate(self, request: Request) -> None:
        """Check a request and set its `batch_size`; inputs with a `reshape` get the model's shape.

        Raises:
            InvalidArgumentError: the first rule broken, in Triton's order and words.
        """
        rules = self._rules
        inputs = request.inputs
        if len(inputs) == len(rules) and not request.is_raw and not self._has_reshape:
            rows = -1
            for name, tensor in inputs.items():
                rule = rules.get(name)
                if rule is None or tensor.datatype != rule.datatype:
                    break
                known = rule.known_shapes.get(tensor.shape)  # type: ignore[call-overload]  # an unhashable shape raises
                if known is None or (known.rows != rows and rows >= 0):
                    break
                if known.byte_size is None:
                    _check_bytes_elements(request, rule.name, self._model_name, tensor.data, known.element_count)
                # Most tensors have their bytes at hand, and a property costs more than the test.
                elif known.byte_size != (len(tensor.data) if tensor.__class__ is Tensor else tensor.byte_size):
                    break
                rows = known.rows
            else:
                for output_name in request.requested_outputs:
                    if output_name not in self._output_names:
                        raise self._unexpected_output(output_name)
                request.batch_size = rows if rows > 0 else 1
                return
        self._validate_slowly(request)

    def batch_key_needed(self) -> bool:
        """Whether requests can differ so that they may not share a batch."""
        return self._has_optional or any(rule.must_match or rule.is_shape_tensor for rule in self._rules.values())

    def batch_key(self, request: Request) -> Hashable:
        """Equal for requests that may share a batch: same inputs, same shapes where they vary, same shape tensors."""
        rules = self._rules
        return tuple(
            sorted((name, _batch_key(rules[name], tensor)) for name, tensor in request.inputs.items() if name in rules)
        )

    def _validate_slowly(self, request: Request) -> None:
        model_name = self._model_name
        if request.is_raw:
            self._deduce_raw_input(request)
        inputs = request.inputs
        for output_name in request.requested_outputs:
            if output_name not in self._output_names:
                raise self._unexpected_output(output_name)
        if not self._required_count <= len(inputs) <= len(self._rules):
            raise self._wrong_input_count(request)
        for name in inputs:
            if name not in self._rules:
                raise InvalidArgumentError(f"unexpected inference input '{name}' for model '{model_name}'")
        if self._max_batch_size:
            self._check_batch(request)
        known = []
        for name, tensor in inputs.items():
            known.append((tensor, self._check_input(request, self._rules[name], tensor)))
        rows = 1
        for tensor, facts in known:
            tensor.shape = facts.model_shape
            rows = facts.rows or 1
        request.batch_size = rows

    def _deduce_raw_input(self, request: Request) -> None:
        """Give the input of a raw request the name, datatype and shape of the model's only input."""
        if len(self._rules) != 1:
            raise InvalidArgumentError(
                f"{request.log_prefix}Raw request must only have 1 input (found {len(request.inputs)}) to be deduced "
                f"but got {len(self._rules)} inputs in '{self._model_name}' model configuration"
            )
        (rule,) = self._rules.values()
        (raw,) = request.inputs.values()
        data = raw.data
        if rule.dims.count(-1) > 1:
            raise InvalidArgumentError(
                f"{request.log_prefix}The shape of the raw input '{rule.name}' can not be deduced because there are "
                "more than one variable-sized dimension"
            )
        if rule.datatype == BYTES:
            if element_count([abs(dim) for dim in rule.dims]) != 1:
                raise InvalidArgumentError(
                    f"{request.log_prefix}For BYTE datatype raw input '{rule.name}', the model must have input shape "
                    "[1]"
                )
            shape = tuple(1 for _ in rule.dims)
            data = b"".join((_LENGTH.pack(len(data)), data))
        else:
            rest = element_count([dim for dim in rule.dims if dim != -1]) * ELEMENT_BYTE_SIZES[rule.datatype]
            shape = tuple(len(data) // rest if dim == -1 else dim for dim in rule.dims)
        if self._max_batch_size:
            shape = (1, *shape)
        request.inputs = {rule.name: Tensor(rule.name, rule.datatype, shape, data)}

    def _check_batch(self, request: Request) -> None:
        rows = 0
        for name, tensor in request.inputs.items():
            if self._rules[name].is_shape_tensor:
                continue
            label = _label(request, name)
            if not len(tensor.shape):
                raise InvalidArgumentError(
                    f"{request.log_prefix}input '{label}' has no shape but model requires batch dimension for "
                    f"'{self._model_name}'"
                )
            # A batch of zero is also Triton's marker for "no batch size seen yet".
            if not rows:
                rows = tensor.shape[0]
            elif tensor.shape[0] != rows:
                raise InvalidArgumentError(
                    f"{request.log_prefix}input '{label}' batch size does not match other inputs for "
                    f"'{self._model_name}'"
                )
        if rows > self._max_batch_size:
            raise InvalidArgumentError(
                f"{request.log_prefix}inference request batch-size must be <= {self._max_batch_size} for "
                f"'{self._model_name}'"
            )

    def _check_input(self, request: Request, rule: _InputRule, tensor: Tensor) -> _KnownShape:
        prefix, model_name, label = request.log_prefix, self._model_name, _label(request, rule.name)
        shape = tuple(tensor.shape)
        if tensor.datatype != rule.datatype:
            shown = tensor.datatype if tensor.datatype in ELEMENT_BYTE_SIZES else "<invalid>"
            raise InvalidArgumentError(
                f"{prefix}inference input '{label}' data-type is '{shown}', but model '{model_name}' expects "
                f"'{rule.datatype}'"
            )
        has_batch = self._max_batch_size > 0 and not rule.is_shape_tensor
        own = shape[1:] if has_batch else shape
        if -1 in own:
            raise InvalidArgumentError(
                f"{prefix}All input dimensions should be specified for input '{label}' for model '{model_name}', got "
                f"{format_shape(shape)}"
            )
        if len(own) != len(rule.dims) or any(
            expected not in (-1, dim) for expected, dim in zip(rule.dims, own, strict=True)
        ):
            expected_shape = ((-1,) if has_batch else ()) + rule.dims
            note = _BATCH_NOTE if has_batch else ""
            raise InvalidArgumentError(
                f"{prefix}unexpected shape for input '{label}' for model '{model_name}'. Expected "
                f"{format_shape(expected_shape)}, got {format_shape(shape)}. {note}"
            )
        rows = shape[0] if has_batch else 1
        for dim in shape:
            if dim < 0:
                raise InvalidArgumentError(
                    f"{prefix}invalid shape for input '{label}': shape {format_shape(shape)} contains one or more "
                    "invalid dimensions"
                )
        # Of a batch of zero Triton expects the bytes of one row (see `_check_batch`).
        elements = element_count(own if has_batch and rows == 0 else shape)
        element_byte_size = ELEMENT_BYTE_SIZES[rule.datatype]
        if elements > _MAX_INT64 or elements * element_byte_size > _MAX_INT64:
            raise InvalidArgumentError(
                f"{prefix}byte size overflow for input '{label}': element count ({elements}) * data type size "
                f"({element_byte_size}) exceeds maximum allowed size ({_MAX_INT64})"
            )
        byte_size: int | None = None
        if rule.datatype == BYTES:
            _check_bytes_elements(request, label, model_name, tensor.data, elements)
        else:
            byte_size = elements * element_byte_size
            if byte_size != tensor.byte_size:
                raise InvalidArgumentError(
                    f"{prefix}input byte size mismatch for input '{label}' for model '{model_name}'. Expected "
                    f"{byte_size}, got {tensor.byte_size}"
                )
        model_shape = shape
        if rule.reshape is not None:
            wildcards = iter([dim for expected, dim in zip(rule.dims, own, strict=True) if expected == -1])
            model_shape = shape[: int(has_batch)] + tuple(next(wildcards) if dim == -1 else dim for dim in rule.reshape)
        known = _KnownShape(rows, elements, byte_size, model_shape)
        if rows and len(rule.known_shapes) < _MAX_KNOWN_SHAPES:
            rule.known_shapes[shape] = known
        return known

    def _wrong_input_count(self, request: Request) -> InvalidArgumentError:
        got = list(request.inputs)
        missing = [rule.name for rule in self._rules.values() if not rule.is_optional and rule.name not in got]
        if self._has_optional:
            expected = f"number of inputs between {self._required_count} and {len(self._rules)}"
        else:
            expected = f"{self._required_count} inputs"
        # Triton prints an empty list of missing inputs as a lone bracket.
        missing_text = f"[{_quote(missing)}]" if missing else "]"
        return InvalidArgumentError(
            f"{request.log_prefix}expected {expected} but got {len(got)} inputs for model '{self._model_name}'. "
            f"Got input(s) [{_quote(got)}], but missing required input(s) {missing_text}. "
            "Please provide all required input(s)."
        )

    def _unexpected_output(self, name: str) -> InvalidArgumentError:
        return InvalidArgumentError(f"unexpected inference output '{name}' for model '{self._model_name}'")


class ResponseShaper:
    """What happens to a model's outputs before a client sees them: unrequested ones go, reshaped ones turn back."""

    def __init__(self, config: ModelConfig) -> None:
        self._reshapes = {
            model_output.name: model_output for model_output in config.output if model_output.reshape is not None
        }
        self._has_batch_dim = config.max_batch_size > 0
        self._output_names = frozenset(model_output.name for model_output in config.output)

    def shape(self, request: Request, response: Response) -> None:
        """Apply to one response, in place."""
        outputs = response.outputs
        requested: Sequence[str] | frozenset[str] = request.requested_outputs or self._output_names
        for output in outputs:
            if output.name not in requested:
                response.outputs = outputs = [output for output in outputs if output.name in requested]
                break
        if self._reshapes:
            for output in outputs:
                config = self._reshapes.get(output.name)
                if config is not None:
                    output.shape = self._turn_back(config, tuple(output.shape))

    def _turn_back(self, config: ModelOutput, shape: tuple[int, ...]) -> tuple[int, ...]:
        assert config.reshape is not None
        batch = shape[: int(self._has_batch_dim)]
        own = shape[len(batch) :]
        if len(own) != len(config.reshape.shape):
            return shape
        wildcards = []
        for expected, dim in zip(config.reshape.shape, own, strict=True):
            if expected == -1:
                wildcards.append(dim)
            elif expected != dim:
                return shape
        rest = iter(wildcards)
        return batch + tuple(next(rest) if dim == -1 else dim for dim in config.dims)


def format_shape(shape: Sequence[int]) -> str:
    """A shape as Triton prints it: `[1,16]`."""
    return "[" + ",".join(map(str, shape)) + "]"


def _batch_key(rule: _InputRule, tensor: Tensor) -> Hashable:
    if rule.is_shape_tensor:
        # Of the whole batch there is one.
        return (*tensor.shape, bytes(tensor.data))
    return tuple(tensor.shape[1:]) if rule.must_match else ()


def _label(request: Request, name: str) -> str:
    """How errors call an input; the input of a raw request has no name of its own."""
    return "raw_input" if request.is_raw else name


def _quote(names: Sequence[str]) -> str:
    return ",".join(f"'{name}'" for name in names)


def _check_bytes_elements(request: Request, label: str, model_name: str, data: Buffer, expected: int) -> None:
    """Count the elements of an encoded BYTES tensor, and see that the last one is whole.

    Triton leaves the last to the backends, which all refuse it with this text; here no backend has to look.
    """
    position, end, count, length = 0, len(data), 0, 0
    unpack = _LENGTH.unpack_from
    while position < end:
        if end - position < 4:
            raise InvalidArgumentError(
                f"{request.log_prefix}incomplete string length indicator for inference input '{label}' for model "
                f"'{model_name}', expecting 4 bytes but only {end - position} bytes available. Please make sure the "
                "string length indicator is in one buffer."
            )
        count += 1
        if count > expected:
            raise InvalidArgumentError(
                f"{request.log_prefix}unexpected number of string elements {count} for inference input '{label}' for "
                f"model '{model_name}', expecting {expected}"
            )
        (length,) = unpack(data, position)
        position += 4 + length
    if count != expected:
        raise InvalidArgumentError(
            f"{request.log_prefix}expected {expected} string elements for inference input '{label}' for model "
            f"'{model_name}', got {count}"
        )
    if position > end:
        raise InvalidArgumentError(
            f"incomplete string data for inference input '{label}', expecting string of length {length} but only "
            f"{length - (position - end)} bytes available"
        )

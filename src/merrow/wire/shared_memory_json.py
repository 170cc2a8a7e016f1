"""The shared memory endpoints of REST: bodies of register requests -> values, regions -> JSON.

Source: Triton, http_server.cc, HandleSystemSharedMemory and HandleCudaSharedMemory.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from merrow.core.errors import InvalidArgumentError
from merrow.core.tensor import Buffer
from merrow.wire.admin_json import decode_base64
from merrow.wire.triton_json import (
    NOT_STRING,
    NOT_UINT,
    check_input_size,
    cut_at_nul,
    decode_json,
    encode_json,
    member_error,
)

_MAX_UINT64 = 2**64 - 1


class SystemRegionLike(Protocol):
    """A registered region of system memory."""

    @property
    def name(self) -> str: ...
    @property
    def key(self) -> str: ...
    @property
    def offset(self) -> int: ...
    @property
    def byte_size(self) -> int: ...


class CudaRegionLike(Protocol):
    """A registered region of a GPU's memory."""

    @property
    def name(self) -> str: ...
    @property
    def device_id(self) -> int: ...
    @property
    def byte_size(self) -> int: ...


@dataclass(frozen=True, slots=True)
class SystemRegistration:
    """What is to be registered."""

    key: str
    offset: int
    byte_size: int


@dataclass(frozen=True, slots=True)
class CudaRegistration:
    """What is to be registered."""

    raw_handle: bytes
    device_id: int
    byte_size: int


def decode_system_registration(body: Buffer, max_input_byte_size: int) -> SystemRegistration:
    """The body of a register request.

    Raises:
        ServerError: the body is too long, no JSON, or something is missing or of the wrong type.
    """
    members = _decode_members(body, max_input_byte_size)
    _require(members, "key")
    key = _string(members, "key")
    offset = _uint(members, "offset") if "offset" in members else 0
    _require(members, "byte_size")
    return SystemRegistration(key, offset, _uint(members, "byte_size"))


def decode_cuda_registration(body: Buffer, max_input_byte_size: int) -> CudaRegistration:
    """The body of a register request; the handle may be of any length.

    Raises:
        ServerError: the body is too long, no JSON, or something is missing or of the wrong type.
    """
    members = _decode_members(body, max_input_byte_size)
    _require(members, "raw_handle")
    handle = members["raw_handle"]
    encoded = _string(handle if type(handle) is dict else {}, "b64")
    byte_size = _uint(members, "byte_size")
    return CudaRegistration(decode_base64(encoded), _uint(members, "device_id"), byte_size)


def encode_system_regions(regions: Iterable[SystemRegionLike]) -> bytes:
    return encode_json(
        [
            {"name": region.name, "key": region.key, "offset": region.offset, "byte_size": region.byte_size}
            for region in regions
        ]
    )


def encode_cuda_regions(regions: Iterable[CudaRegionLike]) -> bytes:
    return encode_json(
        [{"name": region.name, "device_id": region.device_id, "byte_size": region.byte_size} for region in regions]
    )


def _decode_members(body: Buffer, max_input_byte_size: int) -> dict[str, Any]:
    check_input_size(len(body), max_input_byte_size)
    document = decode_json(body)
    return document if type(document) is dict else {}


def _require(members: dict[str, Any], name: str) -> None:
    if name not in members:
        raise InvalidArgumentError(f"Shared memory register request has no '{name}' field")


def _string(members: dict[str, Any], name: str) -> str:
    value = members.get(name)
    if type(value) is not str:
        raise member_error(members, name, NOT_STRING)
    return cut_at_nul(value)


def _uint(members: dict[str, Any], name: str) -> int:
    value = members.get(name)
    if type(value) is not int or not 0 <= value <= _MAX_UINT64:
        raise member_error(members, name, NOT_UINT)
    return value

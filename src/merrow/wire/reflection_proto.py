"""Server reflection: what tools like grpcurl ask to find out which services there are, and what their messages are.

Both versions of the protocol, v1 and v1alpha, are the same on the wire. Only published .proto files are shown; nothing
here depends on the models.

Source: grpc, doc/server-reflection.md.
"""

from collections.abc import Callable

from google.protobuf.descriptor import FileDescriptor
from google.protobuf.message import DecodeError

from merrow.core.errors import InternalError
from merrow.core.tensor import Buffer
from merrow.wire._generated import grpc_service_pb2, health_pb2, reflection_v1_pb2, reflection_v1alpha_pb2
from merrow.wire._generated.pool import POOL

SERVICE_NAMES: tuple[str, ...] = tuple(
    service.full_name
    for module in (grpc_service_pb2, health_pb2, reflection_v1_pb2, reflection_v1alpha_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
)

_NOT_FOUND = 5
_INVALID_ARGUMENT = 3


def answer_reflection_request(message: Buffer) -> bytes:
    """The ServerReflectionResponse to a ServerReflectionRequest.

    Raises:
        InternalError: the bytes are no such request.
    """
    try:
        request = reflection_v1_pb2.ServerReflectionRequest.FromString(bytes(message))
    except DecodeError:
        raise InternalError("Unable to parse request") from None
    response = reflection_v1_pb2.ServerReflectionResponse(valid_host=request.host)
    response.original_request.CopyFrom(request)
    kind = request.WhichOneof("message_request")
    try:
        if kind == "list_services":
            for name in SERVICE_NAMES:
                response.list_services_response.service.add(name=name)
        elif kind == "file_by_filename":
            _add_file(response, POOL.FindFileByName, request.file_by_filename)
        elif kind == "file_containing_symbol":
            _add_file(response, _find_symbol, request.file_containing_symbol)
        elif kind == "file_containing_extension":
            # None of the files has extensions.
            raise KeyError(f"extension of {request.file_containing_extension.containing_type}")
        elif kind == "all_extension_numbers_of_type":
            POOL.FindMessageTypeByName(request.all_extension_numbers_of_type)
            response.all_extension_numbers_response.base_type_name = request.all_extension_numbers_of_type
        else:
            response.error_response.error_code = _INVALID_ARGUMENT
            response.error_response.error_message = "the request asks for nothing"
    except KeyError:
        response.error_response.error_code = _NOT_FOUND
        response.error_response.error_message = "not found"
    return response.SerializeToString()


def _find_symbol(name: str) -> FileDescriptor:
    """
    Raises:
        KeyError: there is no such symbol.
    """
    try:
        return POOL.FindFileContainingSymbol(name)
    except KeyError:
        # The pool does not look for methods.
        service_name, _, method_name = name.rpartition(".")
        service = POOL.FindServiceByName(service_name)
        service.methods_by_name[method_name]
        return service.file


def _add_file(
    response: reflection_v1_pb2.ServerReflectionResponse, find: Callable[[str], FileDescriptor], name: str
) -> None:
    """Add the file that `find` finds, and those it depends on.

    Raises:
        KeyError: there is none.
    """
    pending, seen = [find(name)], set()
    while pending:
        file = pending.pop()
        if file.name not in seen:
            seen.add(file.name)
            response.file_descriptor_response.file_descriptor_proto.append(file.serialized_pb)
            pending.extend(file.dependencies)

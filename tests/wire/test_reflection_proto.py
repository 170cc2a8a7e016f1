"""Reflection, question by question, with the published messages where they are installed."""

import pytest

from merrow.core.errors import InternalError
from merrow.wire._generated import reflection_v1_pb2, reflection_v1alpha_pb2
from merrow.wire.reflection_proto import SERVICE_NAMES, answer_reflection_request

Request = reflection_v1_pb2.ServerReflectionRequest
Response = reflection_v1_pb2.ServerReflectionResponse


def ask(**fields):
    response = Response.FromString(answer_reflection_request(Request(host="h", **fields).SerializeToString()))
    assert response.valid_host == "h"
    assert response.original_request == Request(host="h", **fields)
    return response


def file_names(response):
    from google.protobuf.descriptor_pb2 import FileDescriptorProto

    return [
        FileDescriptorProto.FromString(data).name for data in response.file_descriptor_response.file_descriptor_proto
    ]


def test_every_service_is_listed():
    assert tuple(service.name for service in ask(list_services="").list_services_response.service) == SERVICE_NAMES


def test_a_file_comes_with_those_it_needs():
    files = ["grpc_service.proto", "model_config.proto"]
    assert file_names(ask(file_by_filename="grpc_service.proto")) == files
    for symbol in (
        "inference.GRPCInferenceService",
        "inference.GRPCInferenceService.ModelInfer",
        "inference.ModelInferRequest.InferInputTensor",
    ):
        assert file_names(ask(file_containing_symbol=symbol)) == files
    assert file_names(ask(file_containing_symbol="grpc.health.v1.Health")) == ["health.proto"]


@pytest.mark.parametrize(
    "fields",
    [
        {"file_by_filename": "nothing.proto"},
        {"file_containing_symbol": "inference.Nothing"},
        {"file_containing_symbol": ""},
        {"all_extension_numbers_of_type": "inference.Nothing"},
        {
            "file_containing_extension": reflection_v1_pb2.ExtensionRequest(
                containing_type="inference.ModelInferRequest", extension_number=1
            )
        },
    ],
)
def test_what_is_not_there(fields):
    assert ask(**fields).error_response.error_code == 5


def test_messages_have_no_extensions():
    response = ask(all_extension_numbers_of_type="inference.ModelInferRequest").all_extension_numbers_response
    assert (response.base_type_name, list(response.extension_number)) == ("inference.ModelInferRequest", [])


def test_nothing_asked():
    assert ask().error_response.error_code == 3


def test_bytes_that_are_no_request():
    with pytest.raises(InternalError, match="Unable to parse request"):
        answer_reflection_request(b"\xff\xff")


def test_both_versions_are_the_same_on_the_wire():
    request = reflection_v1alpha_pb2.ServerReflectionRequest(host="h", list_services="*")
    answer = answer_reflection_request(request.SerializeToString())
    response = reflection_v1alpha_pb2.ServerReflectionResponse.FromString(answer)
    assert len(response.list_services_response.service) == len(SERVICE_NAMES)
    assert response.original_request == request

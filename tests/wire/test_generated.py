"""The generated messages: up to date, private to us, and the same on the wire as the published ones."""

import importlib.util
import sys
from pathlib import Path

import pytest

from merrow.wire._generated import (
    grpc_service_pb2,
    health_pb2,
    model_config_pb2,
    reflection_v1_pb2,
    reflection_v1alpha_pb2,
)
from merrow.wire._generated.pool import POOL

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_generated_files_are_those_of_the_proto_files():
    pytest.importorskip("grpc_tools")
    specification = importlib.util.spec_from_file_location("generate", ROOT / "protos" / "generate.py")
    assert specification is not None
    assert specification.loader is not None
    generate = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(generate)

    assert generate.main(["--check"]) == 0


def test_they_live_beside_those_of_tritonclient():
    published = pytest.importorskip("tritonclient.grpc.service_pb2")

    ours = grpc_service_pb2.ModelInferRequest(model_name="m")

    assert published.ModelInferRequest.DESCRIPTOR is not ours.DESCRIPTOR
    assert ours.DESCRIPTOR.file.pool is POOL
    assert published.ModelInferRequest.FromString(ours.SerializeToString()).model_name == "m"


def test_they_are_the_published_ones_field_by_field():
    service = pytest.importorskip("tritonclient.grpc.service_pb2")
    config = pytest.importorskip("tritonclient.grpc.model_config_pb2")

    for ours, published in ((grpc_service_pb2, service), (model_config_pb2, config)):
        assert _shape_of(ours.DESCRIPTOR) == _shape_of(published.DESCRIPTOR)


def test_the_health_messages_are_those_of_grpc():
    published = pytest.importorskip("grpc_health.v1.health_pb2")

    ours, theirs = _shape_of(health_pb2.DESCRIPTOR), _shape_of(published.DESCRIPTOR)

    for name in ("HealthCheckRequest", "HealthCheckResponse"):
        assert ours[f"grpc.health.v1.{name}"] == theirs[f"grpc.health.v1.{name}"]


def test_the_reflection_messages_are_those_of_grpc():
    published = pytest.importorskip("grpc_reflection.v1alpha.reflection_pb2")

    assert _shape_of(reflection_v1alpha_pb2.DESCRIPTOR) == _shape_of(published.DESCRIPTOR)
    ours = {
        name.replace(".v1.", ".v1alpha."): fields for name, fields in _shape_of(reflection_v1_pb2.DESCRIPTOR).items()
    }
    assert ours.keys() == _shape_of(published.DESCRIPTOR).keys()


def test_importing_them_pulls_in_nothing_else():
    assert not {name for name in sys.modules if name.startswith("merrow.wire._generated.")} - {
        "merrow.wire._generated.grpc_service_pb2",
        "merrow.wire._generated.health_pb2",
        "merrow.wire._generated.model_config_pb2",
        "merrow.wire._generated.pool",
        "merrow.wire._generated.reflection_v1_pb2",
        "merrow.wire._generated.reflection_v1alpha_pb2",
    }


def _shape_of(file: object) -> dict[str, object]:
    """Every message's fields and every service's methods, as plain values."""
    shape: dict[str, object] = {}
    pending = list(file.message_types_by_name.values())  # type: ignore[attr-defined]
    while pending:
        message = pending.pop()
        pending.extend(message.nested_types)
        shape[message.full_name] = [
            (
                field.name,
                field.number,
                field.type,
                isinstance(field.default_value, list),
                field.message_type.full_name if field.message_type else None,
                [(value.name, value.number) for value in field.enum_type.values][:3] if field.enum_type else None,
                field.containing_oneof.name if field.containing_oneof else None,
            )
            for field in message.fields
        ]
    for service in file.services_by_name.values():  # type: ignore[attr-defined]
        if not service.full_name.startswith("grpc.health"):
            shape[service.full_name] = [
                (method.name, method.input_type.full_name, method.output_type.full_name) for method in service.methods
            ]
    return shape

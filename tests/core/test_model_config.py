"""The configuration's values mirror `model_config.proto`: every message and field, in its order, with its default."""

import dataclasses
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from merrow.core import model_config
from merrow.core.model_config import (
    ModelConfig,
    ModelEnsembling,
    ModelResponseCache,
    ModelTransactionPolicy,
)
from merrow.wire._generated import model_config_pb2


def _descriptors() -> dict[str, Descriptor]:
    found: dict[str, Descriptor] = {}
    pending = list(model_config_pb2.DESCRIPTOR.message_types_by_name.values())
    while pending:
        descriptor = pending.pop()
        pending.extend(descriptor.nested_types)
        if not descriptor.GetOptions().map_entry:
            found["".join(descriptor.full_name.split(".")[1:])] = descriptor
    return found


DESCRIPTORS = _descriptors()


def test_there_is_a_class_for_every_message_and_no_other():
    classes = {name for name, value in vars(model_config).items() if dataclasses.is_dataclass(value)}

    assert classes == set(DESCRIPTORS)


@pytest.mark.parametrize("name", sorted(DESCRIPTORS))
def test_fields_are_the_messages_fields(name: str):
    value = getattr(model_config, name)()

    fields = [field.name for field in dataclasses.fields(value)]
    assert [field.rstrip("_") for field in fields] == [field.name for field in DESCRIPTORS[name].fields]
    for field, descriptor in zip(fields, DESCRIPTORS[name].fields, strict=True):
        assert getattr(value, field) == _default(descriptor), field


@pytest.mark.parametrize("name", sorted(DESCRIPTORS))
def test_values_cannot_be_changed(name: str):
    value = getattr(model_config, name)()

    for field in dataclasses.fields(value):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, field.name, None)
    assert not hasattr(value, "__dict__")


def test_short_questions_have_short_answers():
    plain = ModelConfig(name="m")
    assert (plain.is_decoupled, plain.is_ensemble, plain.has_batch_dim, plain.has_response_cache) == (False,) * 4

    other = ModelConfig(
        platform="ensemble",
        max_batch_size=1,
        ensemble_scheduling=ModelEnsembling(),
        model_transaction_policy=ModelTransactionPolicy(decoupled=True),
        response_cache=ModelResponseCache(enable=True),
    )
    assert (other.is_decoupled, other.is_ensemble, other.has_batch_dim, other.has_response_cache) == (True,) * 4


def _default(field: FieldDescriptor) -> Any:
    message = field.message_type
    if message is not None and message.GetOptions().map_entry:
        return {}
    if isinstance(field.default_value, list):
        return ()
    if message is not None or field.containing_oneof is not None:
        return None
    if field.enum_type is not None:
        return field.enum_type.values_by_number[0].name
    return field.default_value

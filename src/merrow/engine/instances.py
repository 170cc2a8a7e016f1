"""The instances of a model: which ones its configuration asks for, and which stay when only that has changed. Pure.

Instances are told apart by what they are, not by what they are called: a group's settings without its name and count,
and the device. So a group that is renamed, or moved in the list, keeps its instances, and what they hold in memory.

Source: Triton, core/src/backend_model.cc: UpdateInstanceGroup; backend_model_instance.h: Signature.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from merrow.backends.base import InstanceDescription
from merrow.core.model_config import ModelConfig, ModelInstanceGroup

_T = TypeVar("_T")

Signature = tuple[ModelInstanceGroup, int]
"""What an instance is: its group's settings, and its device."""


@dataclass(frozen=True, slots=True)
class InstancePlan:
    """An instance that a configuration asks for."""

    description: InstanceDescription
    signature: Signature


@dataclass(frozen=True, slots=True)
class InstanceChange(Generic[_T]):
    """Which instances stay, which are started, which are closed."""

    kept: tuple[_T, ...]
    added: tuple[InstancePlan, ...]
    removed: tuple[_T, ...]


def plan_instances(config: ModelConfig) -> list[InstancePlan]:
    """Every instance of a finished configuration, passive ones too, group by group, device by device."""
    return [
        InstancePlan(
            InstanceDescription(f"{group.name}_{number}", group.kind, device_id),
            (replace(group, name="", count=0, gpus=()), device_id),
        )
        for group in config.instance_group
        for device_id in group.gpus or (0,)
        for number in range(group.count)
    ]


def change_instances(existing: Sequence[tuple[Signature, _T]], wanted: Iterable[InstancePlan]) -> InstanceChange[_T]:
    """Match what there is with what is asked for."""
    left = list(existing)
    kept: list[_T] = []
    added: list[InstancePlan] = []
    for plan in wanted:
        index = next((index for index, (signature, _) in enumerate(left) if signature == plan.signature), None)
        if index is None:
            added.append(plan)
        else:
            kept.append(left.pop(index)[1])
    return InstanceChange(tuple(kept), tuple(added), tuple(instance for _, instance in left))

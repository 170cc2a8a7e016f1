from merrow.core.model_config import ModelConfig, ModelInstanceGroup
from merrow.engine.instances import change_instances, plan_instances


def config(*groups):
    return ModelConfig(name="m", instance_group=groups)


def group(name, count=1, kind="KIND_CPU", gpus=(), **changes):
    return ModelInstanceGroup(name=name, count=count, kind=kind, gpus=gpus, **changes)


def started(model_config):
    return [(plan.signature, plan.description.name) for plan in plan_instances(model_config)]


def test_a_group_has_its_count_of_instances_on_each_device():
    plans = plan_instances(config(group("m_0", 2), group("m_1", 1, "KIND_GPU", gpus=(0, 3))))

    assert [(plan.description.name, plan.description.kind, plan.description.device_id) for plan in plans] == [
        ("m_0_0", "KIND_CPU", 0),
        ("m_0_1", "KIND_CPU", 0),
        ("m_1_0", "KIND_GPU", 0),
        ("m_1_0", "KIND_GPU", 3),
    ]


def test_the_name_and_the_count_of_a_group_do_not_matter():
    change = change_instances(started(config(group("m_0", 2))), plan_instances(config(group("other", 3))))

    assert change.kept == ("m_0_0", "m_0_1")
    assert [plan.description.name for plan in change.added] == ["other_2"]
    assert change.removed == ()


def test_fewer_instances_leave_the_first_ones():
    change = change_instances(started(config(group("m_0", 3))), plan_instances(config(group("m_0", 1))))

    assert (change.kept, change.added, change.removed) == (("m_0_0",), (), ("m_0_1", "m_0_2"))


def test_another_kind_device_or_policy_is_another_instance():
    before = started(config(group("m_0", 1, "KIND_GPU", gpus=(0,))))
    for other in (
        group("m_0"),
        group("m_0", 1, "KIND_GPU", gpus=(1,)),
        group("m_0", 1, "KIND_GPU", gpus=(0,), host_policy="p"),
    ):
        change = change_instances(before, plan_instances(config(other)))
        assert (change.kept, len(change.added), change.removed) == ((), 1, ("m_0_0",))

from dataclasses import replace

import pytest

from merrow.core.errors import InvalidArgumentError
from merrow.core.model_config import ModelConfig, ModelParameter
from merrow.places.process.limits import ChildLimits, limits_of
from merrow.settings import ProcessSettings
from tests.places.process.place_harness import make_context


def context_with(**parameters):
    config = ModelConfig(parameters={name: ModelParameter(value) for name, value in parameters.items()})
    return make_context("m", config=config)


def test_there_are_no_limits_unless_someone_sets_them():
    assert limits_of(context_with(), ProcessSettings()) == ChildLimits(0, 0)


def test_the_server_s_settings_hold_for_models_that_say_nothing():
    settings = ProcessSettings(execution_timeout_seconds=1.5, memory_limit_mb=2)

    assert limits_of(context_with(), settings) == ChildLimits(1_500_000_000, 2 * 1024 * 1024)


def test_a_model_s_parameters_replace_them():
    settings = replace(ProcessSettings(), execution_timeout_seconds=1.5, memory_limit_mb=2)
    context = context_with(EXECUTION_TIMEOUT_SECONDS="0", MEMORY_LIMIT_MB="512")

    assert limits_of(context, settings) == ChildLimits(0, 512 * 1024 * 1024)


def test_limits_are_told_in_words():
    assert str(ChildLimits()) == ""
    assert str(ChildLimits(1_500_000_000, 200 << 20)) == ", execution time-out 1.5 s, memory limit 200 MB"


@pytest.mark.parametrize("value", ["soon", "-1", "", "nan", "inf"])
def test_a_value_that_is_no_limit_is_refused(value):
    with pytest.raises(InvalidArgumentError) as caught:
        limits_of(context_with(MEMORY_LIMIT_MB=value), ProcessSettings())
    assert caught.value.message == (
        f"model 'm': parameter MEMORY_LIMIT_MB must be a number, and not negative, got '{value}'"
    )

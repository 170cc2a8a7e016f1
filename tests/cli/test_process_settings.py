from pathlib import Path

import pytest

from merrow.cli.flags import FlagError
from merrow.cli.process_settings import PROCESS_SETTINGS, build_process_settings
from merrow.settings import ProcessSettings


def test_nothing_said_means_the_defaults():
    assert build_process_settings({}) == ProcessSettings()
    assert build_process_settings({"python": {"something-else": "x"}, "onnxruntime": {"a": "b"}}) == ProcessSettings()


def test_every_setting_becomes_its_field():
    settings = build_process_settings(
        {
            "": {"stub-timeout-seconds": "5", "memory-limit-mb": "9"},
            "python": {
                "shm-default-byte-size": "65536",
                "memory-limit-mb": "100",
                "execution-timeout-seconds": "2.5",
                "install-requirements": "true",
                "environment-cache-directory": "/cache",
                "crash-loop-deaths": "3",
            },
        }
    )

    assert settings == ProcessSettings(
        start_timeout_seconds=5,
        arena_initial_byte_size=65536,
        memory_limit_mb=100,
        execution_timeout_seconds=2.5,
        installs_requirements=True,
        environment_cache_directory="/cache",
        crash_loop_death_count=3,
    )


@pytest.mark.parametrize("setting", sorted(PROCESS_SETTINGS.keys() - {"environment-cache-directory"}))
def test_a_value_of_the_wrong_kind_names_the_setting(setting):
    with pytest.raises(FlagError, match=rf'Bad option: "--backend-config"\.\n{setting}: '):
        build_process_settings({"python": {setting: "soon"}})


def test_a_negative_time_out_is_none():
    with pytest.raises(FlagError, match="execution-timeout-seconds"):
        build_process_settings({"python": {"execution-timeout-seconds": "-1"}})


def test_every_setting_is_documented():
    page = (Path(__file__).parents[2] / "docs" / "python-models.md").read_text()

    assert [setting for setting in PROCESS_SETTINGS if f"`{setting}" not in page] == []

"""From a model's directory to what is loaded, or why not."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from merrow.core.errors import InternalError
from merrow.core.model_config import ModelConfig, ModelInput, ModelInstanceGroup
from merrow.repository.plan import (
    Change,
    ModelPlan,
    PlanSettings,
    PollFailure,
    change_between,
    config_json,
    duplicate_warning,
    finish_config,
    has_version_changed,
    load_plan,
    plan_model,
)
from merrow.repository.scan import ModelDirectory, ModelLocation

CONFIG = b'backend: "python" max_batch_size: 4 input [{ name: "A" data_type: TYPE_FP32 dims: [2] }]'


def _directory(**changes: object) -> ModelDirectory:
    directory = ModelDirectory(
        name="m",
        directory="/repository/m",
        repository="/repository",
        config_path="/repository/m/config.pbtxt",
        config_text=CONFIG,
        subdirectories=("1", "12", "3"),
        first_entries={"model.py": False},
        modification_times={"": 1, "config.pbtxt": 2, "1/model.py": 3},
    )
    return replace(directory, **changes)  # type: ignore[arg-type]


def _plan(settings: PlanSettings | None = None, config_override: str | None = None, **changes: object) -> ModelPlan:
    plan = plan_model(_directory(**changes), settings, config_override)
    assert isinstance(plan, ModelPlan)
    return plan


def _reason(settings: PlanSettings | None = None, config_override: str | None = None, **changes: object) -> str:
    plan = plan_model(_directory(**changes), settings, config_override)
    assert isinstance(plan, PollFailure)
    assert (plan.name, plan.directory) == ("m", "/repository/m")
    return plan.reason


def test_the_log_says_that_several_repositories_have_a_model():
    assert duplicate_warning("b") == "failed to poll model 'b': not unique across all model repositories"


def test_a_plan_says_what_to_load():
    plan = _plan()

    assert (plan.name, plan.directory, plan.repository) == ("m", "/repository/m", "/repository")
    assert plan.versions == (12,)
    assert plan.config.name == "m"
    assert plan.config.default_model_filename == "model.py"
    assert plan.modification_times == {"": 1, "config.pbtxt": 2, "1/model.py": 3}
    assert (plan.labels, plan.label_error, plan.warnings) == ({}, None, ())


def test_a_model_without_configuration():
    assert _plan(config_text=None).config.backend == "python"


def test_versions_follow_the_policy_and_oddities_are_warned_of():
    plan = _plan(
        config_text=CONFIG + b"version_policy { specific { versions: [1, 9] } }", subdirectories=("01", "1", "2")
    )

    assert plan.versions == (1,)
    assert plan.warnings == (
        "ignore version directory '01' which contains leading zeros in its directory name",
        "version 9 is specified for model 'm', but the version directory is not present",
    )


def test_no_version_is_no_poll_failure():
    assert _plan(subdirectories=()).versions == ()


def test_a_syntax_error_shows_its_place():
    assert _reason(config_text=b'name: "m"\nmax_batch_siz: 4') == (
        "failed to read text proto from /repository/m/config.pbtxt: "
        '2:1: Message type "inference.ModelConfig" has no field named "max_batch_siz".\n'
        "max_batch_siz: 4\n"
        "^"
    )


def test_the_log_names_the_directory():
    failure = plan_model(_directory(config_text=b'name: "n" backend: "python"'))

    assert isinstance(failure, PollFailure)
    assert failure.log_message == (
        "Poll failed for model directory 'm': unexpected directory name 'm' for model 'n', "
        "directory name must equal model name"
    )


def test_without_auto_completion_everything_must_be_written():
    strict = PlanSettings(auto_complete=False)

    assert _reason(strict, config_text=None) == (
        "failed to open text file for read /repository/m/config.pbtxt: No such file or directory"
    )
    assert _reason(strict, config_text=b'backend: "python" input [{ name: "A" data_type: TYPE_FP32 }]') == (
        "model input 'A' must specify 'dims' for m"
    )
    assert _plan(strict).versions == (12,)


def test_a_configuration_from_a_load_request_replaces_the_files():
    plan = _plan(config_override='{"backend": "python", "max_batch_size": 8}')

    assert plan.config.max_batch_size == 8
    assert plan.config.input == ()
    assert plan.config_override == '{"backend": "python", "max_batch_size": 8}'


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("{", "Invalid config override: 1:2: Expecting property name enclosed in double quotes"),
        (
            '{"bogus": 1}',
            'Invalid config override: Message type "inference.ModelConfig" has no field named "bogus" at '
            '"ModelConfig".',
        ),
        ("[]", "Invalid config override: the configuration must be a JSON object"),
        (
            '{"name": "n", "backend": "python"}',
            "unexpected directory name 'm' for model 'n', directory name must equal model name",
        ),
    ],
)
def test_a_configuration_from_a_load_request_may_be_wrong(override: str, reason: str):
    assert _reason(config_override=override) == reason


def test_a_finished_configuration_has_what_the_backend_found_and_its_instances():
    plan = _plan()
    completed = replace(plan.config, max_batch_size=16)

    config = finish_config(plan.config, completed, preferred_cpu_instance_count=3)

    assert config.max_batch_size == 16
    assert config.instance_group == (ModelInstanceGroup(name="m", kind="KIND_CPU", count=3),)
    assert finish_config(plan.config, None).max_batch_size == 4
    assert json.loads(config_json(config))["instance_group"][0]["name"] == "m"


def _touched(plan: ModelPlan, **times: int) -> ModelPlan:
    paths = {path.replace("_", "."): time for path, time in times.items()}
    return replace(plan, modification_times={**plan.modification_times, **paths})


def test_nothing_changed():
    plan = _plan()

    assert change_between(plan, plan) is Change.NONE
    # A time set back is no change.
    assert change_between(plan, _touched(plan, config_pbtxt=1)) is Change.NONE


def test_an_override_survives_a_plain_load_until_a_file_changes():
    override = _plan(config_override='{"backend": "python", "max_batch_size": 8}')

    assert change_between(override, _plan()) is Change.NONE
    assert change_between(override, override) is Change.NONE
    assert change_between(override, _touched(_plan(), config_pbtxt=9)) is Change.RELOAD
    assert change_between(_plan(), override) is Change.RELOAD


def test_only_the_instances_changed():
    plan = _plan()
    found = _touched(
        replace(plan, config=replace(plan.config, instance_group=(ModelInstanceGroup(count=2),))), config_pbtxt=9
    )

    assert change_between(plan, found) is Change.INSTANCES
    assert change_between(plan, _touched(plan, config_pbtxt=9)) is Change.INSTANCES


def test_only_a_version_changed():
    plan = _plan()
    found = _touched(plan, **{"": 9, "1/model_py": 9, "12/model_py": 9})

    assert change_between(plan, found) is Change.INSTANCES
    assert [version for version in (1, 2, 12) if has_version_changed(plan, found, version)] == [1, 12]


def test_a_file_that_is_gone_is_a_change():
    plan = _touched(_plan(), **{"1/more": 1, "labels": 1})

    assert change_between(plan, _touched(_plan(), labels=1)) is Change.INSTANCES
    assert change_between(plan, _touched(_plan(), **{"1/more": 1})) is Change.RELOAD


def test_anything_else_is_a_reload():
    plan = _plan()

    assert change_between(plan, _touched(plan, new_txt=0)) is Change.RELOAD
    assert change_between(plan, replace(plan, source="/elsewhere/m")) is Change.RELOAD
    changed = replace(plan, config=replace(plan.config, input=(ModelInput("B"),)))
    assert change_between(plan, _touched(changed, config_pbtxt=9)) is Change.RELOAD


def test_loading_a_plan_reads_the_directory_and_its_labels(tmp_path: Path):
    (tmp_path / "m" / "1").mkdir(parents=True)
    (tmp_path / "m" / "1" / "model.py").write_text("")
    (tmp_path / "m" / "config.pbtxt").write_text('output [{ name: "OUT" label_filename: "labels.txt" }]')
    (tmp_path / "m" / "labels.txt").write_text("cat\ndog\n")
    location = ModelLocation("m", str(tmp_path / "m"), str(tmp_path))

    plan = load_plan(location)

    assert isinstance(plan, ModelPlan)
    assert plan.versions == (1,)
    assert plan.config.backend == "python"
    assert plan.labels == {"OUT": ("cat", "dog")}


def test_missing_labels_fail_the_load_and_not_the_plan(tmp_path: Path):
    (tmp_path / "config.pbtxt").write_text('name: "m" backend: "b" output [{ name: "OUT" label_filename: "x" }]')

    plan = load_plan(ModelLocation("m", str(tmp_path), ""))

    assert isinstance(plan, ModelPlan)
    assert isinstance(plan.label_error, InternalError)
    assert plan.label_error.message == f"failed to open text file for read {tmp_path}/x: No such file or directory"


def test_a_plan_of_a_model_that_left_meanwhile(tmp_path: Path):
    plan = load_plan(ModelLocation("m", str(tmp_path / "m"), ""))

    assert plan == PollFailure("m", str(tmp_path / "m"), f"failed to read {tmp_path / 'm'}: No such file or directory")


def test_a_plan_with_settings(tmp_path: Path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "big.pbtxt").write_text('name: "m" backend: "b" max_batch_size: 64')

    plan = load_plan(ModelLocation("m", str(tmp_path), ""), PlanSettings(config_name="big"))

    assert isinstance(plan, ModelPlan)
    assert plan.config.max_batch_size == 64
    assert isinstance(plan.config, ModelConfig)


def test_a_renamed_model_has_the_new_name_whatever_its_configuration_says(tmp_path):
    (tmp_path / "1").mkdir()
    (tmp_path / "config.pbtxt").write_text('name: "inner" backend: "identity" max_batch_size: 1')

    plan = load_plan(ModelLocation("outer", str(tmp_path), "", is_renamed=True))

    assert isinstance(plan, ModelPlan)
    assert (plan.name, plan.config.name) == ("outer", "outer")

import pytest

from merrow.cli.flags import FlagError, FlagValues, parse_flags
from merrow.cli.repository_settings import build_repository_settings
from merrow.cli.serve_flags import SERVE_FLAGS
from merrow.settings import ModelControlMode, SettingsError


def build(*arguments, **environment):
    values = FlagValues(parse_flags(arguments, SERVE_FLAGS))
    return build_repository_settings(values, environment, auto_complete=True, backend_config={})


def test_without_flags_everything_has_its_default():
    settings = build()

    assert settings.model_repositories == ()
    assert settings.model_control_mode is ModelControlMode.NONE
    assert settings.repository_poll_seconds == 15
    assert (settings.model_load_thread_count, settings.model_load_retry_count) == (4, 0)
    assert not settings.model_namespacing


def test_flags_are_taken_over():
    settings = build(
        "--model-repository=a",
        "--model-store=b",
        "--model-control-mode=poll",
        "--repository-poll-secs=3",
        "--model-config-name=small",
        "--model-load-retry-count=2",
        "--model-load-gpu-limit=0:0.5",
        "--model-load-gpu-limit=1:1",
        "--model-namespacing=true",
        "--remote-cache-directory=/cache",
        "--remote-cache-byte-size=5",
    )

    assert settings.model_repositories == ("a", "b")
    assert settings.model_control_mode is ModelControlMode.POLL
    assert (settings.repository_poll_seconds, settings.model_config_name) == (3, "small")
    assert settings.model_load_retry_count == 2
    assert settings.model_load_gpu_limits == {0: 0.5, 1: 1.0}
    assert settings.model_namespacing
    assert (settings.cloud.cache_directory, settings.cloud.cache_byte_size) == ("/cache", 5)


def test_vertex_ai_names_the_repository_where_no_flag_does():
    assert build(AIP_STORAGE_URI="gs://bucket").model_repositories == ("gs://bucket",)
    assert build("--model-repository=a", AIP_STORAGE_URI="gs://bucket").model_repositories == ("a",)


def test_the_environment_tells_of_clouds():
    cloud = build(
        TRITON_CLOUD_CREDENTIAL_PATH="/credentials",
        TRITON_AWS_MOUNT_DIRECTORY="/aws",
        TRITON_AZURE_MOUNT_DIRECTORY="/azure",
        AZURE_STORAGE_ACCOUNT="account",
        AZURE_STORAGE_KEY="secret",
    ).cloud

    assert cloud.credential_path == "/credentials"
    assert cloud.mount_directories == {"s3": "/aws", "as": "/azure"}
    assert (cloud.azure_account, cloud.azure_key) == ("account", "secret")
    assert "secret" not in repr(cloud)


@pytest.mark.parametrize("text", ["1", "x:0.5", "0:x", "0.5"])
def test_a_limit_that_is_none_is_refused(text):
    with pytest.raises(FlagError) as caught:
        build(f"--model-load-gpu-limit={text}")
    assert str(caught.value) == f"--model-load-gpu-limit option format is '<device id>:<fraction>'. Got {text}"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--model-load-gpu-limit=0:1.5",), "limit fraction in range"),
        (("--model-load-gpu-limit=-1:0.5",), "device id >= 0"),
        (("--model-control-mode=poll", "--repository-poll-secs=0"), "--repository-poll-secs must be at least 1"),
        (("--model-load-retry-count=-1",), "--model-load-retry-count must not be negative"),
        (("--load-model=a",), "requires setting '--model-control-mode=explicit'"),
    ],
)
def test_impossible_settings_are_refused(arguments, text):
    with pytest.raises(SettingsError, match=text):
        build(*arguments)

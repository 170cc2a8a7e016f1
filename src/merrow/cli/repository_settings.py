"""From given flags and the environment to `RepositorySettings`.

Source: Triton, command_line_parser.cc; model_repository.md, "Model Repository Locations".
"""

from collections.abc import Mapping, Sequence

from merrow.cli.delays import build_scheduler_hold
from merrow.cli.flags import FlagError, FlagValues
from merrow.cli.scheduling_settings import build_host_policies
from merrow.settings import CloudSettings, ModelControlMode, RepositorySettings

# Where copies of models go, by the scheme of their repository.
_MOUNT_VARIABLES = {
    "s3": "TRITON_AWS_MOUNT_DIRECTORY",
    "gs": "TRITON_GCS_MOUNT_DIRECTORY",
    "as": "TRITON_AZURE_MOUNT_DIRECTORY",
}


def build_repository_settings(
    values: FlagValues,
    environment: Mapping[str, str],
    auto_complete: bool,
    backend_config: Mapping[str, Mapping[str, str]],
) -> RepositorySettings:
    """Collect what concerns models and where they are.

    Raises:
        FlagError: a flag's value cannot be read.
        SettingsError: a setting has an impossible value.
    """
    repositories = values.all("model-repository", "model-store")
    if not repositories and environment.get("AIP_STORAGE_URI"):
        # Vertex AI says so where the model's artefacts are.
        repositories = (environment["AIP_STORAGE_URI"],)
    return RepositorySettings(
        model_repositories=repositories,
        model_control_mode=ModelControlMode(values.last("model-control-mode", "none")),
        load_models=values.all("load-model"),
        auto_complete_config=auto_complete,
        exit_on_error=values.last("exit-on-error", True),
        strict_readiness=values.last("strict-readiness", True),
        model_load_thread_count=values.last("model-load-thread-count", 4),
        model_load_retry_count=values.last("model-load-retry-count", 0),
        host_policies=build_host_policies(values.all("host-policy")),
        min_compute_capability=values.last("min-supported-compute-capability", 6.0),
        model_load_gpu_limits=_read_gpu_limits(values.all("model-load-gpu-limit")),
        repository_poll_seconds=values.last("repository-poll-secs", 15),
        model_config_name=values.last("model-config-name", ""),
        model_namespacing=values.last("model-namespacing", False),
        backend_config=backend_config,
        execution_place=values.last("execution-place", None),
        debug_model=values.last("debug-model", ""),
        scheduler_hold=build_scheduler_hold(environment),
        cloud=_build_cloud_settings(values, environment),
    )


def _build_cloud_settings(values: FlagValues, environment: Mapping[str, str]) -> CloudSettings:
    defaults = CloudSettings()
    return CloudSettings(
        cache_directory=values.last("remote-cache-directory", ""),
        cache_byte_size=values.last("remote-cache-byte-size", defaults.cache_byte_size),
        mount_directories={
            scheme: environment[variable] for scheme, variable in _MOUNT_VARIABLES.items() if environment.get(variable)
        },
        credential_path=environment.get("TRITON_CLOUD_CREDENTIAL_PATH", ""),
        azure_account=environment.get("AZURE_STORAGE_ACCOUNT", ""),
        azure_key=environment.get("AZURE_STORAGE_KEY", ""),
    )


def _read_gpu_limits(given: Sequence[str]) -> dict[int, float]:
    limits: dict[int, float] = {}
    for text in given:
        device, colon, fraction = text.partition(":")
        try:
            if not colon:
                raise ValueError
            limits[int(device)] = float(fraction)
        except ValueError:
            raise FlagError(f"--model-load-gpu-limit option format is '<device id>:<fraction>'. Got {text}") from None
    return limits

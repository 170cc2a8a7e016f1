"""What to load: from a model's directory to its configuration, versions and labels, or the reason why not.

A model fails in one of two stages, which clients tell apart. What is wrong with its configuration as written (a syntax
error, an impossible setting, another model's name) is a `PollFailure`, and only the log learns the reason. What shows
when a version is created (no version, a missing label file, an impossible tensor) is an error of the load.

    ModelDirectory --plan_model--> ModelPlan --finish_config (with what the backend completed)--> ModelConfig

`load_plan` is the convenience over all of the first part, for a loading thread; everything else here is pure.

Source: Triton, core/src/model_repository_manager.cc: InitializeModelInfo, ModelRepositoryManager::Poll.
"""

import enum
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from merrow.core.errors import ServerError
from merrow.core.model_config import ModelConfig
from merrow.repository import autofill, layout, scan, validation, version_policy
from merrow.repository.layout import ModelId
from merrow.repository.scan import ModelDirectory, ModelLocation
from merrow.wire import model_config_text
from merrow.wire.model_config_text import ConfigTextError

DUPLICATE_REASON = "model appears in two or more repositories"


@dataclass(frozen=True, slots=True)
class PlanSettings:
    """How configurations are read.

    `auto_complete` off (`--disable-auto-complete-config`) makes config.pbtxt, and everything in it, mandatory.
    `config_name` is `--model-config-name`.
    """

    auto_complete: bool = True
    config_name: str = ""


@dataclass(frozen=True, slots=True)
class ModelPlan:
    """A model that can be loaded.

    `config` is normalised and valid as far as can be told before its backend has seen it. `versions` are those that the
    version policy selects, ascending; none is an error of the load (`version_policy.no_version_error`). `labels` are
    the class names by output; `label_error`, when set, fails each version after its configuration was validated.
    `warnings` are for the log. A `config_override` came with a load request and stands for config.pbtxt.

    `source` is where the files are from: `directory` or, where that is a copy, its origin; "" if they came with a load
    request. `modification_times` and, for a repository that is not on this machine, `entity_tags` tell a changed model,
    by path. A `temporary_directory` holds the copy, and is removed with the last version that needs it. `composing` are
    the models that an ensemble is made of, once they are known.
    """

    name: str
    directory: str
    config: ModelConfig
    versions: tuple[int, ...]
    repository: str = ""
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    label_error: ServerError | None = None
    warnings: tuple[str, ...] = ()
    modification_times: Mapping[str, int] = field(default_factory=dict)
    config_override: str | None = None
    source: str = ""
    entity_tags: Mapping[str, str] = field(default_factory=dict)
    namespace: str = ""
    temporary_directory: str = ""
    composing: tuple[ModelId, ...] = ()

    @property
    def model_id(self) -> ModelId:
        return ModelId(self.namespace, self.name)


@dataclass(frozen=True, slots=True)
class PollFailure:
    """A model that cannot be loaded, and why. The client learns only that polling failed; the log gets `reason`."""

    name: str
    directory: str
    reason: str

    @property
    def log_message(self) -> str:
        return f"Poll failed for model directory '{self.name}': {self.reason}"


class Change(enum.Enum):
    """What a load must do about a model that is loaded already."""

    NONE = "none"
    # All that the versions share is the same but for the instance groups and the version policy: instances are added
    # and removed, and only versions whose own files changed are loaded again.
    INSTANCES = "instances"
    RELOAD = "reload"


def duplicate_warning(name: str) -> str:
    """What the log says of a model that several repositories have."""
    return f"failed to poll model '{name}': not unique across all model repositories"


def load_plan(
    location: ModelLocation, settings: PlanSettings | None = None, config_override: str | None = None
) -> ModelPlan | PollFailure:
    """Read one model's directory and plan it. Blocks on the disk: for a loading thread, not for the loop."""
    settings = settings or PlanSettings()
    try:
        directory = scan.scan_model(location, settings.config_name)
    except ServerError as error:
        return PollFailure(location.name, location.directory, error.message)
    plan = plan_model(directory, settings, config_override)
    if isinstance(plan, PollFailure):
        return plan
    try:
        return replace(plan, labels=scan.read_labels(plan.directory, plan.config))
    except ServerError as error:
        return replace(plan, label_error=error)


def plan_model(
    directory: ModelDirectory, settings: PlanSettings | None = None, config_override: str | None = None
) -> ModelPlan | PollFailure:
    """Plan one model from what its directory holds; `labels` stay empty.

    Args:
        config_override: a configuration in JSON, from a load request, instead of the directory's.
    """
    settings = settings or PlanSettings()
    try:
        config = _read_config(directory, settings, config_override)
        config = autofill.fill_backend(config, directory.name, directory.first_entries)
        config = autofill.normalize(config)
        if directory.is_renamed:
            config = replace(config, name=directory.name)
        validation.validate_config(config)
        if not settings.auto_complete:
            validation.validate_tensors(config)
        if config.name != directory.name:
            raise _PlanError(
                f"unexpected directory name '{directory.name}' for model '{config.name}', "
                "directory name must equal model name"
            )
    except _PlanError as error:
        return PollFailure(directory.name, directory.directory, str(error))
    except ServerError as error:
        return PollFailure(directory.name, directory.directory, error.message)
    found = layout.read_version_directories(directory.subdirectories)
    selection = version_policy.select_versions(config.version_policy, found.versions)
    missing = (version_policy.missing_version_warning(config.name, version) for version in selection.missing)
    return ModelPlan(
        name=config.name,
        directory=directory.directory,
        config=config,
        versions=selection.versions,
        repository=directory.repository,
        source=directory.directory,
        warnings=(*found.warnings, *missing),
        modification_times=directory.modification_times,
        config_override=config_override,
    )


def finish_config(
    config: ModelConfig,
    completed: ModelConfig | None,
    gpu_ids: Collection[int] = (),
    preferred_cpu_instance_count: int = 0,
    takes_gpus: bool = True,
) -> ModelConfig:
    """The configuration that a version runs with and the config endpoint prints.

    Args:
        config: a plan's.
        completed: what the backend's auto-completion returned; None when that is off.
        gpu_ids: the GPUs that the server may use.
        preferred_cpu_instance_count: how many instances the backend wants on a CPU where the configuration is silent.
        takes_gpus: whether a group of no particular kind goes to the GPUs.

    Raises:
        ServerError: the completed configuration is impossible; the load fails with this text.
    """
    if completed is not None:
        config = autofill.merge_completed(config, completed)
    config = autofill.normalize_instance_groups(config, gpu_ids, preferred_cpu_instance_count, takes_gpus)
    validation.validate_instance_groups(config, gpu_ids)
    validation.validate_tensors(config)
    return config


def config_json(config: ModelConfig) -> str:
    """A finished configuration as the config endpoint prints it, and as Python models receive it."""
    return model_config_text.encode_config_json(config)


def change_between(loaded: ModelPlan, found: ModelPlan) -> Change:
    """What must be done about a loaded model, given a fresh plan of the same directory.

    A path that is new, has a newer time, or is gone counts as a change. Tags, which a file elsewhere has instead, need
    only differ.
    """
    if loaded.source != found.source or not found.source:
        return Change.RELOAD
    changed = changed_paths(loaded, found.modification_times, found.entity_tags)
    if not changed and found.config_override in (None, loaded.config_override):
        return Change.NONE
    # The model's own directory changes when an editor replaces the file, or a version comes or goes.
    shared = {path for path in changed if path not in (layout.CONFIG_FILE, "") and _version_of(path) is None}
    if not shared and _is_instance_change(loaded.config, found.config):
        return Change.INSTANCES
    return Change.RELOAD


def has_version_changed(loaded: ModelPlan, found: ModelPlan, version: int) -> bool:
    """Whether a version's own files are other than when it was loaded."""
    changed = changed_paths(loaded, found.modification_times, found.entity_tags)
    return any(_version_of(path) == version for path in changed)


def changed_paths(loaded: ModelPlan, modification_times: Mapping[str, int], entity_tags: Mapping[str, str]) -> set[str]:
    """The paths of a model that are other than when it was loaded."""
    changed = {path for path, time in modification_times.items() if time > loaded.modification_times.get(path, -1)}
    changed |= set(loaded.modification_times) - set(modification_times)
    changed |= {path for path, tag in entity_tags.items() if loaded.entity_tags.get(path) != tag}
    return changed | (set(loaded.entity_tags) - set(entity_tags))


class _PlanError(Exception):
    """A reason that is not one of Triton's status codes."""


def _read_config(directory: ModelDirectory, settings: PlanSettings, config_override: str | None) -> ModelConfig:
    if config_override is not None:
        try:
            return model_config_text.decode_config_json(config_override)
        except ConfigTextError as error:
            raise _PlanError(f"Invalid config override: {error}") from None
    if directory.config_text is None:
        if settings.auto_complete:
            return ModelConfig()
        raise _PlanError(f"failed to open text file for read {directory.config_path}: No such file or directory")
    try:
        return model_config_text.decode_config_text(directory.config_text)
    except ConfigTextError as error:
        excerpt = f"\n{error.excerpt}" if error.excerpt else ""
        # Triton leaves out what is wrong, which is what one needs to know.
        raise _PlanError(f"failed to read text proto from {directory.config_path}: {error}{excerpt}") from None


def _version_of(path: str) -> int | None:
    """The version that a path of a model belongs to; None for what all share."""
    versions = layout.read_version_directories([path.replace("\\", "/").partition("/")[0]]).versions
    return versions[0] if versions else None


def _is_instance_change(loaded: ModelConfig, found: ModelConfig) -> bool:
    # Requests with any number of responses are bound to their instance, which cannot leave before they are over.
    if found.is_decoupled or found.is_ensemble:
        return False
    return found == replace(loaded, instance_group=found.instance_group, version_policy=found.version_policy)

"""Reading repositories: which models there are, and one model's plan, whatever it is made from.

    a directory of this machine                         read where it lies
    a directory elsewhere (s3://, gs://, hf://, ...)    copied first, as far as it changed: `repository.remote`
    files that came with a load request                 written to a directory of their own

Everything here blocks: it is for loading threads. A plan that has a `temporary_directory` owns it; whoever drops the
plan, or the last version loaded from it, calls `remove_copy`.

Source: Triton, core/src/model_repository_manager.cc: PollModels, InitializeModelInfo.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

from merrow.core.errors import AlreadyExistsError, InternalError, InvalidArgumentError, ServerError
from merrow.core.model_config import ENVIRONMENT_PARAMETER, MODEL_DIRECTORY_VARIABLE, ModelParameter
from merrow.repository import agents, scan
from merrow.repository import plan as planning
from merrow.repository.layout import ModelId, check_model_name
from merrow.repository.plan import ModelPlan, PlanSettings, PollFailure
from merrow.repository.remote import address
from merrow.repository.remote.store import RemoteStore
from merrow.repository.scan import ModelLocation
from merrow.settings import RepositorySettings

_LOG = logging.getLogger("merrow.repository")

# In the copy of a model, for what was not in its directory.
_ENVIRONMENT_FOLDER = ".environment"


@dataclass(frozen=True, slots=True)
class Overrides:
    """What comes with a load request: a configuration as JSON text, and files by their path in the model."""

    config: str | None = None
    files: Mapping[str, bytes] | None = None


_NO_OVERRIDES = Overrides()


class RepositoryReader:
    """Reads all repositories of a server."""

    def __init__(self, settings: RepositorySettings) -> None:
        self._settings = settings
        self._plan_settings = PlanSettings(settings.auto_complete_config, settings.model_config_name)
        self._store = RemoteStore(settings.cloud)
        # Models from outside of the repositories, by the directory that was registered; replaced, never changed.
        self._registered: dict[str, list[ModelLocation]] = {}

    def list_models(self) -> list[ModelLocation]:
        """Every model directory of every repository, by name; a name may occur in several.

        Raises:
            InternalError: a repository cannot be read at all.
        """
        locations: list[ModelLocation] = []
        for repository in self._settings.model_repositories:
            try:
                if address.is_remote(repository):
                    locations += self._store.list_models(repository)
                else:
                    locations += scan.list_models([repository])
            except scan.RepositoryError as error:
                raise InternalError(str(error)) from None
        for registered in self._registered.values():
            locations += registered
        return sorted(locations, key=lambda location: location.name)

    def find_models(self, name: str) -> list[ModelLocation]:
        """Where a model of this (checked) name is; several if several repositories have it."""
        locations: list[ModelLocation] = []
        for repository in self._settings.model_repositories:
            if address.is_remote(repository):
                locations += self._store.find_model(repository, name)
            else:
                locations += scan.find_model([repository], name)
        for registered in self._registered.values():
            locations += (location for location in registered if location.name == name)
        return locations

    def register(self, directory: str, name: str) -> None:
        """Add the models of a directory outside of the repositories; the one that is served gets this name.

        Raises:
            AlreadyExistsError: the directory has been registered.
            InvalidArgumentError: there is no such directory, or the name is none.
        """
        check_model_name(name)
        if directory in self._registered:
            raise AlreadyExistsError(f"model repository '{directory}' has already been registered")
        try:
            models = scan.list_container_models(directory, name)
        except scan.RepositoryError as error:
            raise InvalidArgumentError(str(error)) from None
        self._registered = {**self._registered, directory: models}

    def unregister(self, directory: str) -> None:
        """Forget the models of a directory; those that are loaded stay. A no-op for an unknown one."""
        self._registered = {known: models for known, models in self._registered.items() if known != directory}

    def model_id(self, location: ModelLocation) -> ModelId:
        """How a model that was found there is known."""
        return ModelId(location.repository if self._settings.model_namespacing else "", location.name)

    def read(
        self, location: ModelLocation, known: ModelPlan | None = None, overrides: Overrides = _NO_OVERRIDES
    ) -> ModelPlan | PollFailure:
        """Plan the model at a location.

        Args:
            known: the plan that is in service, which comes back as it is when nothing has changed since.
            overrides: of a load request.
        """
        try:
            if overrides.files:
                plan = self._read_files(location.name, overrides)
            elif address.is_remote(location.directory):
                plan = self._read_remote(location, known, overrides)
            else:
                if known is not None and overrides.config is None and not _has_changed(location, known):
                    return known
                plan = planning.load_plan(location, self._plan_settings, overrides.config)
        except ServerError as error:
            return PollFailure(location.name, location.directory, error.message)
        if isinstance(plan, PollFailure) or plan is known:
            return plan
        for warning in plan.warnings:
            _LOG.warning("%s: %s", plan.name, warning)
        try:
            agents.check(plan.config, partial(scan.digest_of_file, plan.directory))
        except ServerError as error:
            self.remove_copy(plan.temporary_directory)
            return PollFailure(location.name, location.directory, error.message)
        return replace(plan, namespace=self.model_id(location).namespace)

    def remove_copy(self, directory: str) -> None:
        """Remove the temporary directory of a plan; "" is none."""
        if directory:
            scan.remove_temporary_directory(directory)

    def _read_files(self, name: str, overrides: Overrides) -> ModelPlan | PollFailure:
        assert overrides.files is not None
        if overrides.config is None:
            return PollFailure(name, "", "Load parameter 'config' must be specified for model file override")
        directory = scan.write_file_overrides(overrides.files)
        return self._plan_copy(ModelLocation(name, directory, ""), directory, overrides, source="", tags={})

    def _read_remote(
        self, location: ModelLocation, known: ModelPlan | None, overrides: Overrides
    ) -> ModelPlan | PollFailure:
        listing = self._store.list_files(location)
        tags = {path: file.tag for path, file in listing.items()}
        if known is not None and (overrides.config is not None or known.source != location.directory):
            known = None
        if known is not None and not planning.changed_paths(known, {}, tags):
            return known
        directory = self._store.copy_model(location, listing)
        local = ModelLocation(location.name, directory, location.repository)
        plan = self._plan_copy(local, directory, overrides, source=location.directory, tags=tags)
        if isinstance(plan, PollFailure):
            return plan
        try:
            return self._copy_environment(plan)
        except ServerError:
            self.remove_copy(directory)
            raise

    def _copy_environment(self, plan: ModelPlan) -> ModelPlan:
        """Copy the execution environment of a model elsewhere, if it lies beside the model's directory and not in it.

        Source: Triton, core/src/filesystem/api.cc: LocalizePythonBackendExecutionEnvironmentPath.
        """
        parameter = plan.config.parameters.get(ENVIRONMENT_PARAMETER)
        if parameter is None:
            return plan
        path = parameter.string_value
        if path.startswith(MODEL_DIRECTORY_VARIABLE):
            path = plan.source + path.removeprefix(MODEL_DIRECTORY_VARIABLE)
        path = address.collapse(path)
        if not address.is_remote(path) or path.startswith(f"{plan.source}/"):
            return plan
        name = f"{_ENVIRONMENT_FOLDER}/{path.rpartition('/')[2]}"
        self._store.copy_file(path, f"{plan.directory}/{name}")
        local = ModelParameter(f"{MODEL_DIRECTORY_VARIABLE}/{name}")
        parameters = {**plan.config.parameters, ENVIRONMENT_PARAMETER: local}
        return replace(plan, config=replace(plan.config, parameters=parameters))

    def _plan_copy(
        self, location: ModelLocation, directory: str, overrides: Overrides, source: str, tags: Mapping[str, str]
    ) -> ModelPlan | PollFailure:
        plan = planning.load_plan(location, self._plan_settings, overrides.config)
        if isinstance(plan, PollFailure):
            self.remove_copy(directory)
            return plan
        return replace(plan, source=source, modification_times={}, entity_tags=tags, temporary_directory=directory)


def _has_changed(location: ModelLocation, known: ModelPlan) -> bool:
    if known.source != location.directory:
        return True
    try:
        times = scan.read_modification_times(location.directory)
    except OSError:
        # Reading it will say why.
        return True
    return bool(planning.changed_paths(known, times, {}))

"""Which ensembles are made of which models, and so what a change of some models means for others. Pure.

A model is a node from the moment it is asked for (start-up, poll, load) until it is unloaded or its directory is gone.
A node that cannot be loaded, because a model that it is made of is missing or failed, stays a node: it is loaded as
soon as that changes. So an ensemble goes when a composing model is unloaded, and comes back with it.

    graph.put / graph.remove     what changed
    graph.affected(changed)      these, and every ensemble above them
    graph.rounds(affected)       in which order to load them: what a round needs was done by those before it
    graph.problem(...)           why a node cannot be loaded, given what became of the models that it is made of

Source: Triton, core/src/model_repository_manager: DependencyGraph, CheckNode.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from merrow.core.errors import ServerError
from merrow.core.model_config import ModelConfig
from merrow.repository import ensemble
from merrow.repository.ensemble import LATEST, ModelKey
from merrow.repository.layout import ModelId


@dataclass(frozen=True, slots=True)
class NodeState:
    """What became of a node: the completed configurations of its versions in service, and why the rest is missing.

    `is_invalid` tells that it was not even tried, for `failure` was known before.
    """

    ready: Mapping[int, ModelConfig] = field(default_factory=dict)
    failure: str = ""
    is_invalid: bool = False

    def config_of(self, version: int) -> ModelConfig | None:
        """The configuration of a version, or of the largest."""
        if version == LATEST:
            version = max(self.ready, default=LATEST)
        return self.ready.get(version)


class DependencyGraph:
    """See the module."""

    def __init__(self) -> None:
        self._configs: dict[ModelId, ModelConfig] = {}
        self._by_name: dict[str, set[ModelId]] = {}

    def __contains__(self, model_id: ModelId) -> bool:
        return model_id in self._configs

    def put(self, model_id: ModelId, config: ModelConfig) -> None:
        """Add a node, or change what it is made of."""
        self._configs[model_id] = config
        self._by_name.setdefault(model_id.name, set()).add(model_id)

    def remove(self, model_id: ModelId) -> None:
        """Remove a node; a no-op where there is none."""
        if self._configs.pop(model_id, None) is not None:
            self._by_name[model_id.name].discard(model_id)
            if not self._by_name[model_id.name]:
                del self._by_name[model_id.name]

    def ids_of(self, name: str) -> list[ModelId]:
        """The nodes of this name; more than one only with namespaces."""
        return sorted(self._by_name.get(name, ()))

    def resolve(self, user: ModelId, name: str) -> ModelId | None:
        """The model that an ensemble means: of its own namespace, or else the only one of that name."""
        own = ModelId(user.namespace, name)
        if own in self._configs:
            return own
        ids = self._by_name.get(name, set())
        return next(iter(ids)) if len(ids) == 1 else None

    def composing(self, model_id: ModelId) -> list[ModelId]:
        """The nodes that a node is made of, as far as they are there."""
        return list(dict.fromkeys(found for _, found in self._resolved(model_id) if found is not None))

    def affected(self, changed: Iterable[ModelId]) -> set[ModelId]:
        """These, and all ensembles that are made of one of them, directly or not. Some may be no nodes."""
        result = set(changed)
        while True:
            names = {model_id.name for model_id in result}
            more = {
                model_id
                for model_id, config in self._configs.items()
                if model_id not in result
                and config.is_ensemble
                and any(name in names for name, _ in ensemble.composing_models(config))
            }
            if not more:
                return result
            result |= more

    def rounds(self, model_ids: Collection[ModelId]) -> Iterator[list[ModelId]]:
        """The nodes among these, round by round; the last round has what is in a circle, and what needs a circle."""
        pending = sorted(model_id for model_id in model_ids if model_id in self._configs)
        while pending:
            waiting = set(pending)
            free = [model_id for model_id in pending if not waiting.intersection(self.composing(model_id))]
            yield free or pending
            if not free:
                return
            pending = [model_id for model_id in pending if model_id not in set(free)]

    def has_missing(self, model_id: ModelId) -> bool:
        """Whether something that a node is made of is no node, or more than one."""
        return any(found is None for _, found in self._resolved(model_id))

    def problem(self, model_id: ModelId, state_of: Callable[[ModelId], NodeState]) -> ServerError | None:
        """Why a node cannot be loaded; None if it can, as far as its dependencies go.

        Args:
            state_of: what became of the models that it is made of, which rounds before this one have done.
        """
        config = self._configs[model_id]
        if not config.is_ensemble:
            return None
        resolved = self._resolved(model_id)
        missing = {name for (name, _), found in resolved if found is None}
        if missing:
            return ensemble.missing_models_error(config.name, sorted(missing))
        try:
            ensemble.check_cycles(config, lambda name: self._config_seen_by(model_id, name))
        except ServerError as error:
            return error
        configs: dict[ModelKey, ModelConfig] = {}
        for (name, version), found in resolved:
            assert found is not None
            state = state_of(found)
            if state.is_invalid:
                return ensemble.not_valid_error(str(model_id), str(found), state.failure)
            if not state.ready:
                return ensemble.not_loaded_error(str(model_id), str(found), state.failure)
            composing = state.config_of(version)
            if composing is None:
                return ensemble.version_not_loaded_error(str(model_id), str(found), version)
            configs[(name, version)] = composing
        try:
            ensemble.check_ensemble(config, configs)
        except ServerError as error:
            return error
        return None

    def unload_with_dependents(self, model_ids: Iterable[ModelId], explicit: Collection[ModelId]) -> set[ModelId]:
        """What `unload_dependents` unloads: these, and what was loaded for them alone.

        Args:
            explicit: the models that somebody asked to load by name; they stay.
        """
        result = set(model_ids)
        pending = list(result)
        while pending:
            for candidate in self.composing(pending.pop()):
                if candidate in result or candidate in explicit:
                    continue
                if all(user in result for user in self._users(candidate)):
                    result.add(candidate)
                    pending.append(candidate)
        return result

    def _users(self, model_id: ModelId) -> list[ModelId]:
        return [user for user in self._configs if model_id in self.composing(user)]

    def _resolved(self, model_id: ModelId) -> list[tuple[ModelKey, ModelId | None]]:
        config = self._configs.get(model_id)
        keys = () if config is None else ensemble.composing_models(config)
        return [(key, self.resolve(model_id, key[0])) for key in keys]

    def _config_seen_by(self, user: ModelId, name: str) -> ModelConfig | None:
        found = self.resolve(user, name)
        return None if found is None else self._configs[found]

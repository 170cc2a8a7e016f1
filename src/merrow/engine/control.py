"""What is loaded and why: start-up, polling, and the load and unload API, in all three control modes.

    NONE       everything is loaded at the start, and stays
    POLL       the same, then what was added, changed or removed is followed, every so many seconds
    EXPLICIT   what `--load-model` names is loaded at the start, then what clients ask for

Whatever the reason, a change runs through `_apply`: models that left are unloaded, then those that changed are loaded,
models before the ensembles that are made of them, and ensembles above a change again. A model that is not in a state to
be loaded stays wanted, and is tried again when something that it needs changes (or, in POLL mode, each time).

Changes that concern the same models wait for one another; others run side by side. Reading happens on loading threads,
everything else on the loop's thread.

Source: Triton, model_repository_manager.cc: PollAndUpdate, LoadUnloadModel, LoadModelByDependency.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial

from merrow.core.errors import InternalError, InvalidArgumentError, ServerError, UnavailableError
from merrow.engine.lifecycle import ModelLifecycle
from merrow.engine.loader import RunBlocking
from merrow.engine.model import Model
from merrow.repository.dependencies import DependencyGraph, NodeState
from merrow.repository.ensemble import composing_models
from merrow.repository.layout import ModelId, check_model_name
from merrow.repository.plan import (
    DUPLICATE_REASON,
    Change,
    ModelPlan,
    PollFailure,
    change_between,
    duplicate_warning,
)
from merrow.repository.reader import Overrides, RepositoryReader
from merrow.repository.scan import ModelLocation
from merrow.settings import ModelControlMode, RepositorySettings

_LOG = logging.getLogger("merrow.engine")

_NOT_ALL_LOADED = "failed to load all models"


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """One line of the repository index; `version` is None and `state` "" for a model that was never loaded."""

    name: str
    version: int | None
    state: str
    reason: str


@dataclass(slots=True)
class _Node:
    """A model that is wanted: what it is to be loaded from, and what became of that."""

    plan: ModelPlan
    # Somebody asked for it by name, so it does not go with the ensemble that needed it.
    is_explicit: bool
    # Why it is not loaded as planned, and whether that was clear without trying.
    failure: str = ""
    is_invalid: bool = False


@dataclass(slots=True)
class _Poll:
    """What reading repositories gave."""

    plans: dict[ModelId, ModelPlan] = field(default_factory=dict)
    failures: dict[str, PollFailure] = field(default_factory=dict)
    # Models that have one directory, whether it can be loaded or not.
    present: set[ModelId] = field(default_factory=set)


class RepositoryControl:
    """See the module. `start` is called once, then anything, then `stop`."""

    def __init__(
        self, settings: RepositorySettings, reader: RepositoryReader, lifecycle: ModelLifecycle, run: RunBlocking
    ) -> None:
        self._settings = settings
        self._reader = reader
        self._lifecycle = lifecycle
        self._run = run
        self._graph = DependencyGraph()
        self._nodes: dict[ModelId, _Node] = {}
        # Where models are, as of the last time that the repositories were listed.
        self._locations: list[ModelLocation] = []
        self._logged_failures: dict[str, str] = {}
        # What changes that are under way concern, and who waits for them.
        self._busy: set[ModelId] = set()
        self._waiters: list[asyncio.Future[None]] = []
        self._listing: asyncio.Task[None] | None = None
        self._polling: asyncio.Task[None] | None = None
        self._stop_polling = asyncio.Event()

    # Life.

    async def start(self) -> ServerError | None:
        """Load the start-up models.

        Returns:
            What to end with if all of them are needed; None if all of them loaded.

        Raises:
            ServerError: a repository cannot be read.
        """
        wanted = self._settings.load_models
        self._locations = await self._run(self._reader.list_models)
        if self._settings.model_control_mode is ModelControlMode.EXPLICIT and wanted != ("*",):
            failure = await self._load_named(wanted)
        else:
            failure = await self._load_all()
        if self._settings.model_control_mode is ModelControlMode.POLL:
            self._polling = asyncio.ensure_future(self._poll_until_stopped())
        return failure

    async def stop(self, timeout_seconds: float) -> None:
        """Stop polling, and want nothing any more. A poll that is under way may end first, if it does so in time."""
        self._stop_polling.set()
        if self._polling is not None:
            await asyncio.wait((self._polling,), timeout=timeout_seconds)
            self._polling.cancel()
            await asyncio.gather(self._polling, return_exceptions=True)
        for node in self._nodes.values():
            self._lifecycle.release(node.plan.temporary_directory)
        self._nodes.clear()

    # The API.

    async def load_model(self, name: str, overrides: Overrides) -> None:
        """Load, or reload, a model by name, and what it is made of.

        Raises:
            ServerError: it cannot be loaded; what served before still does.
        """
        self._check_explicit()
        check_model_name(name)
        async with self._reading({name: overrides}) as poll:
            errors = await self._apply(poll, self._changes(poll), (), explicit={name})
            for model_id in sorted(errors, key=str):
                error = errors[model_id]
                if model_id.name == name and error is not None:
                    raise InvalidArgumentError(f"{_load_failure(model_id, error)}\n")
            if poll.failures:
                raise InternalError(f"failed to load '{name}', failed to poll from model repository")
            ids = [model_id for model_id in self._graph.ids_of(name) if self._lifecycle.statuses(model_id)]
            if not ids:
                raise InternalError(f"failed to load '{name}', no version is available")

    async def unload_model(self, name: str, unload_dependents: bool) -> None:
        """Take a model out of service, and the ensembles that are made of it; returns before it has finished.

        Args:
            unload_dependents: with an ensemble, also unload the models that were loaded for nothing else.

        Raises:
            ServerError: loading and unloading is not allowed.
        """
        self._check_explicit()

        def concerned() -> set[ModelId]:
            ids = set(self._graph.ids_of(name))
            if unload_dependents:
                explicit = {model_id for model_id, node in self._nodes.items() if node.is_explicit}
                ids = self._graph.unload_with_dependents(ids, explicit)
            return ids

        async with self._claim(lambda: self._related(concerned())):
            await self._apply(_Poll(), {}, concerned(), explicit=())

    async def index(self, ready_only: bool) -> list[IndexEntry]:
        """The repository index: what lies in the repositories now, by name, and the states of what was loaded."""
        if self._listing is None:
            self._listing = asyncio.ensure_future(self._list())
        # Who asks while the repositories are being listed gets that list: any number of clients costs one look.
        await asyncio.shield(self._listing)
        return self.known_index(ready_only)

    async def _list(self) -> None:
        try:
            self._locations = await self._run(self._reader.list_models)
        except ServerError as error:
            # Served as it was known last; a store that is away must not hide what is in service.
            _LOG.error("failed to read the model repositories: %s", error.message)
        finally:
            self._listing = None

    def known_index(self, ready_only: bool) -> list[IndexEntry]:
        """The index of the directories that were there when they were last read."""
        index: list[IndexEntry] = []
        counts = Counter(self._reader.model_id(location) for location in self._locations)
        for model_id in sorted(counts):
            if counts[model_id] > 1:
                if not ready_only:
                    index.append(IndexEntry(model_id.name, None, "UNAVAILABLE", DUPLICATE_REASON))
            elif not self._lifecycle.is_known(model_id):
                if not ready_only:
                    index.append(IndexEntry(model_id.name, None, "", ""))
            else:
                for number, status in self._lifecycle.statuses(model_id).items():
                    state, reason = status.state, status.reason
                    if state == "READY" and status.model is not None and not status.model.driver.is_healthy:
                        state, reason = _describe_health(status.model)
                    if state == "READY" or not ready_only:
                        index.append(IndexEntry(model_id.name, number, state, reason))
        return index

    def failures(self) -> dict[str, str]:
        """Why models that are wanted are not loaded, by name, where the index does not say it."""
        failures = dict(self._logged_failures)
        for model_id, node in self._nodes.items():
            if node.is_invalid:
                failures[str(model_id)] = node.failure
        return failures

    def _check_explicit(self) -> None:
        if self._settings.model_control_mode is not ModelControlMode.EXPLICIT:
            raise UnavailableError("explicit model load / unload is not allowed if polling is enabled")

    # Start-up and polling.

    async def _load_all(self) -> ServerError | None:
        poll = await self._read_all()
        explicit = {model_id.name for model_id in poll.plans}
        async with self._claim(lambda: set(poll.plans)):
            errors = await self._apply(poll, self._changes(poll), (), explicit)
        return InternalError(_NOT_ALL_LOADED) if poll.failures or any(errors.values()) else None

    async def _load_named(self, names: Sequence[str]) -> ServerError | None:
        if not names:
            return None
        async with self._reading({name: Overrides() for name in names}) as poll:
            errors = await self._apply(poll, self._changes(poll), (), explicit=set(names))
        reasons = [_load_failure(model_id, error) for model_id, error in errors.items() if error is not None]
        if reasons:
            # As in Triton, which says nothing of those that could not be found then.
            return InvalidArgumentError("\n".join(reasons))
        return InternalError(_NOT_ALL_LOADED) if poll.failures else None

    async def _poll_until_stopped(self) -> None:
        while True:
            try:
                await asyncio.wait_for(self._stop_polling.wait(), self._settings.repository_poll_seconds)
                return
            except asyncio.TimeoutError:
                pass
            try:
                await self.poll()
            except ServerError as error:
                _LOG.error("failed to poll the model repositories: %s", error.message)
            except Exception:
                _LOG.exception("failed to poll the model repositories")

    async def poll(self) -> None:
        """Look at the repositories, and load and unload what has changed: what POLL mode does, again and again.

        Raises:
            ServerError: they cannot be read.
        """
        self._locations = await self._run(self._reader.list_models)
        poll = await self._read_all()
        # A directory that is there but cannot be read keeps what is in service. Of a model that is there twice nobody
        # can say which is meant, so that none is served, as in Triton.
        removed = [model_id for model_id in self._nodes if model_id not in poll.present]
        changes = self._changes(poll)
        if changes or removed:
            async with self._claim(lambda: self._related({*changes, *removed})):
                await self._apply(poll, changes, removed, {model_id.name for model_id in changes})
        self._drop_unused(poll)

    def _changes(self, poll: _Poll) -> dict[ModelId, Change]:
        """What a poll means for each model that it found, if anything."""
        changes: dict[ModelId, Change] = {}
        for model_id, plan in poll.plans.items():
            node = self._nodes.get(model_id)
            serving = self._lifecycle.serving(model_id)
            if node is None or not serving:
                changes[model_id] = Change.RELOAD
                continue
            # Versions in service are of one plan, which is not the last one if that could not be loaded.
            change = change_between(next(iter(serving.values())).plan, plan)
            if change is Change.NONE and node.failure:
                change = Change.RELOAD
            if change is not Change.NONE:
                changes[model_id] = change
        return changes

    # Reading.

    async def _read_all(self) -> _Poll:
        """Read every model of the directories that were listed last."""
        poll = _Poll()
        by_id: dict[ModelId, list[ModelLocation]] = {}
        for location in self._locations:
            by_id.setdefault(self._reader.model_id(location), []).append(location)
        await self._read_into(poll, by_id, {})
        self._log_failures(poll)
        return poll

    async def _read_named(self, overrides: Mapping[str, Overrides]) -> _Poll:
        """Read models by name, then what those among them that are ensembles are made of, and so on."""
        poll = _Poll()
        # Names, each with the namespace that is looked at first.
        pending = {(name, "") for name in overrides}
        asked: set[tuple[str, str]] = set()
        while pending:
            asked |= pending
            by_id: dict[ModelId, list[ModelLocation]] = {}
            for name, namespace in sorted(pending):
                for location in await self._find(poll, name, namespace, overrides.get(name, Overrides())):
                    by_id.setdefault(self._reader.model_id(location), []).append(location)
            before = set(poll.plans)
            await self._read_into(poll, by_id, overrides)
            pending = {
                (name, model_id.namespace)
                for model_id in set(poll.plans) - before
                for name, _ in composing_models(poll.plans[model_id].config)
            } - asked
        self._log_failures(poll)
        return poll

    async def _find(self, poll: _Poll, name: str, namespace: str, overrides: Overrides) -> list[ModelLocation]:
        """Where a model of this name is."""
        try:
            locations: list[ModelLocation] = await self._run(self._reader.find_models, name)
        except ServerError as error:
            poll.failures[name] = PollFailure(name, "", error.message)
            return []
        if overrides.files:
            # The model comes as it is; a directory of that name stands back.
            return locations[:1] or [ModelLocation(name, "", "")]
        if not locations:
            poll.failures[name] = PollFailure(name, "", f"model '{name}' is in none of the model repositories")
        return [location for location in locations if location.repository == namespace] or locations

    async def _read_into(
        self, poll: _Poll, by_id: Mapping[ModelId, Sequence[ModelLocation]], overrides: Mapping[str, Overrides]
    ) -> None:
        async def read(model_id: ModelId, location: ModelLocation) -> None:
            node = self._nodes.get(model_id)
            # A plan in service is not read again if nothing has changed; one that failed is.
            known = None if node is None or node.failure else node.plan
            override = overrides.get(model_id.name, Overrides())
            plan: ModelPlan | PollFailure = await self._run(self._reader.read, location, known, override)
            if isinstance(plan, PollFailure):
                poll.failures[str(model_id)] = plan
            else:
                poll.plans[model_id] = plan

        poll.present |= {model_id for model_id, locations in by_id.items() if len(locations) == 1}
        reads = []
        for model_id, locations in by_id.items():
            if len(locations) > 1:
                poll.failures[str(model_id)] = PollFailure(model_id.name, "", DUPLICATE_REASON)
            else:
                reads.append(read(model_id, locations[0]))
        await asyncio.gather(*reads)

    def _log_failures(self, poll: _Poll) -> None:
        """Say why models could not be read; not again and again in a poll."""
        for name, failure in poll.failures.items():
            if self._logged_failures.get(name) != failure.reason:
                is_duplicate = failure.reason == DUPLICATE_REASON
                _LOG.error("%s", duplicate_warning(name) if is_duplicate else failure.log_message)
        for model_id in poll.plans:
            self._logged_failures.pop(str(model_id), None)
        self._logged_failures.update({name: failure.reason for name, failure in poll.failures.items()})

    @asynccontextmanager
    async def _reading(self, overrides: Mapping[str, Overrides]) -> AsyncIterator[_Poll]:
        """Read models by name, and keep others from changing them, or what depends on them, until they are loaded."""
        names = set(overrides)
        while True:
            async with self._claim(partial(self._related_to_names, names)):
                poll = await self._read_named(overrides)
                found = names | {model_id.name for model_id in poll.plans}
                if found <= names:
                    try:
                        yield poll
                    finally:
                        self._drop_unused(poll)
                    return
                self._drop_unused(poll)
            # An ensemble: what it is made of must be kept, too.
            names = found

    # Applying.

    async def _apply(
        self, poll: _Poll, changes: Mapping[ModelId, Change], removed: Collection[ModelId], explicit: Collection[str]
    ) -> dict[ModelId, ServerError | None]:
        """Unload what left, load what changed and the ensembles above it; the caller has claimed all of them.

        Args:
            explicit: names that somebody asked for.

        Returns:
            What became of each model that was to be loaded.
        """
        for model_id in removed:
            node = self._nodes.pop(model_id, None)
            self._graph.remove(model_id)
            if node is not None:
                self._lifecycle.release(node.plan.temporary_directory)
        for model_id in changes:
            self._adopt(model_id, poll.plans[model_id])
        for model_id, node in self._nodes.items():
            node.is_explicit = node.is_explicit or model_id.name in explicit
        affected = self._graph.affected({*changes, *removed})
        # From the top down, so that no ensemble takes a request that it cannot answer any more.
        for model_id in affected:
            if model_id in self._nodes and self._graph.has_missing(model_id):
                self._lifecycle.unload(model_id)
        for model_id in removed:
            self._lifecycle.unload(model_id)
        results: dict[ModelId, ServerError | None] = {}
        for model_ids in self._graph.rounds(affected):
            problems = {model_id: self._graph.problem(model_id, self._state_of) for model_id in model_ids}
            valid = [model_id for model_id, problem in problems.items() if problem is None]
            for model_id, problem in problems.items():
                if problem is not None:
                    self._reject(model_id, problem)
                    results[model_id] = problem
            loads = (self._load_node(model_id, changes.get(model_id, Change.RELOAD)) for model_id in valid)
            results.update(zip(valid, await asyncio.gather(*loads), strict=True))
        return results

    async def _load_node(self, model_id: ModelId, change: Change) -> ServerError | None:
        node = self._nodes[model_id]
        plan = replace(node.plan, composing=tuple(self._graph.composing(model_id)))
        node.is_invalid = False
        try:
            await self._lifecycle.load(model_id, plan, change)
        except ServerError as error:
            node.failure = error.message
            return error
        node.failure = ""
        return None

    def _reject(self, model_id: ModelId, problem: ServerError) -> None:
        """A model that cannot be loaded, as things are; it is no longer served either."""
        _LOG.error("%s", problem.message)
        node = self._nodes[model_id]
        node.failure, node.is_invalid = problem.message, True
        self._lifecycle.unload(model_id)

    def _adopt(self, model_id: ModelId, plan: ModelPlan) -> None:
        self._lifecycle.lease(plan.temporary_directory)
        node = self._nodes.get(model_id)
        if node is None:
            self._nodes[model_id] = _Node(plan, is_explicit=False)
        else:
            self._lifecycle.release(node.plan.temporary_directory)
            node.plan = plan
        self._graph.put(model_id, plan.config)

    def _drop_unused(self, poll: _Poll) -> None:
        """Remove the copies that were made for plans that nobody took."""
        for plan in poll.plans.values():
            self._lifecycle.drop_unleased(plan.temporary_directory)

    def _state_of(self, model_id: ModelId) -> NodeState:
        node = self._nodes[model_id]
        ready = {number: model.config for number, model in self._lifecycle.serving(model_id).items()}
        return NodeState(ready, node.failure, node.is_invalid)

    # One after another.

    @asynccontextmanager
    async def _claim(self, wanted: Callable[[], set[ModelId]]) -> AsyncIterator[None]:
        """Wait until no other change concerns any of these models, and keep others from changing them meanwhile.

        Args:
            wanted: asked again after each wait, because other changes may change what a model depends on.
        """
        while (model_ids := wanted()) & self._busy:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter
        self._busy |= model_ids
        try:
            yield
        finally:
            self._busy -= model_ids
            waiters, self._waiters = self._waiters, []
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)

    def _ids_named(self, names: Iterable[str]) -> set[ModelId]:
        """The models of these names; also where there are none yet, so that two who add one do not do it at once."""
        return {model_id for name in names for model_id in (ModelId("", name), *self._graph.ids_of(name))}

    def _related_to_names(self, names: Iterable[str]) -> set[ModelId]:
        return self._related(self._ids_named(names))

    def _related(self, model_ids: Iterable[ModelId]) -> set[ModelId]:
        """These, the ensembles above, and all that those are made of."""
        related = self._graph.affected(model_ids)
        pending = list(related)
        while pending:
            for model_id in self._graph.composing(pending.pop()):
                if model_id not in related:
                    related.add(model_id)
                    pending.append(model_id)
        return related


def _describe_health(model: Model) -> tuple[str, str]:
    """State and reason of a loaded version that is not healthy; one whose instances all keep dying is no use."""
    instances = model.driver.instances
    reason = "; ".join([instance.health_reason for instance in instances if not instance.is_healthy])
    is_lost = bool(instances) and all(instance.is_in_crash_loop for instance in instances)
    return "UNAVAILABLE" if is_lost else "READY", reason


def _load_failure(model_id: ModelId, error: ServerError) -> str:
    return f"load failed for model '{model_id}': {error.message}"

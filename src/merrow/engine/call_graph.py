"""Which running models wait for which, so that no call among them waits for ever.

A model that calls another (business logic scripting) keeps its instance until the call is answered. When every
instance of a model is kept so, a further request to it waits for one of those calls; if that call waits for that
request, however indirectly, none will ever end. The call that would close such a ring is refused.

A call makes progress if its request runs on an instance that does, or waits for a model of which an instance does; an
instance makes progress unless it waits for a call that does not. A call to a model (or an ensemble, which needs each of
its models) with an instance that waits for nothing is always fine, so that nothing is searched then.

Calls that outlive the execution that made them (`release`) keep no instance. The length of a chain of calls is bounded.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

_Caller = TypeVar("_Caller", bound=Hashable)
_Request = TypeVar("_Request", bound=Hashable)


class TooDeepError(Exception):
    """The chain of calls is longer than allowed."""


class DeadlockError(Exception):
    """The call would wait for itself."""


@dataclass(slots=True, eq=False)
class Call(Generic[_Caller, _Request]):
    """An open call to a model, whose request is handed to all `targets`, one after another: the model's version, or
    those that make up an ensemble, each as "name/version".

    `caller` is the instance that made it, None if it keeps none. `parents` are the requests on whose behalf, or during
    whose execution, it was made.
    """

    request: _Request
    model: str
    caller: _Caller | None
    targets: frozenset[str]
    parents: Sequence[_Request]
    depth: int = field(default=1)


class CallGraph(Generic[_Caller, _Request]):
    """The open calls. `model_of` says which model ("name/version") an instance belongs to, `instance_count` how many a
    model has.
    """

    def __init__(
        self, max_depth: int, model_of: Callable[[_Caller], str], instance_count: Callable[[str], int]
    ) -> None:
        self._max_depth = max_depth
        self._model_of = model_of
        self._instance_count = instance_count
        self._calls: dict[_Request, Call[_Caller, _Request]] = {}

    def __len__(self) -> int:
        return len(self._calls)

    def open(self, call: Call[_Caller, _Request]) -> None:
        """Take in a call that is about to be made.

        Raises:
            TooDeepError: it is one too many in a row.
            DeadlockError: it would wait for itself.
        """
        call.depth = 1 + max((self._depth_of(parent) for parent in call.parents), default=0)
        if call.depth > self._max_depth:
            raise TooDeepError(" -> ".join([*self._path_to(call), call.model]))
        self._calls[call.request] = call
        if call.caller is not None:
            waiting = self._waiting_instances()
            if not self._has_free_instances(call, waiting) and not self._makes_progress(call, waiting):
                del self._calls[call.request]
                raise DeadlockError(" -> ".join([*self._path_to(call), call.model]))

    def release(self, request: _Request) -> None:
        """The call keeps its instance no longer, though it is open."""
        call = self._calls.get(request)
        if call is not None:
            call.caller = None

    def close(self, request: _Request) -> None:
        """The call was answered for good; fine if it was not open."""
        self._calls.pop(request, None)

    def _depth_of(self, request: _Request) -> int:
        call = self._calls.get(request)
        return 0 if call is None else call.depth

    def _path_to(self, call: Call[_Caller, _Request]) -> list[str]:
        """The models through which a call came about, the first first, as far as they are known."""
        path: list[str] = []
        first = call
        while (parent := next((self._calls[each] for each in first.parents if each in self._calls), None)) is not None:
            path.append(parent.model)
            first = parent
        if first.caller is not None:
            path.append(self._model_of(first.caller).rpartition("/")[0])
        path.reverse()
        return path

    def _waiting_instances(self) -> dict[_Caller, list[Call[_Caller, _Request]]]:
        waiting: dict[_Caller, list[Call[_Caller, _Request]]] = {}
        for call in self._calls.values():
            if call.caller is not None:
                waiting.setdefault(call.caller, []).append(call)
        return waiting

    def _has_free_instances(
        self, call: Call[_Caller, _Request], waiting: Mapping[_Caller, Sequence[Call[_Caller, _Request]]]
    ) -> bool:
        return all(
            sum(self._model_of(caller) == target for caller in waiting) < self._instance_count(target)
            for target in call.targets
        )

    def _makes_progress(
        self, call: Call[_Caller, _Request], waiting: Mapping[_Caller, Sequence[Call[_Caller, _Request]]]
    ) -> bool:
        """Whether the call will end, by finding everything that will, until nothing more is found."""
        # Requests that are being executed by an instance that waits, and by which.
        executors = {parent: caller for caller, calls in waiting.items() for each in calls for parent in each.parents}
        ending: set[int] = set()
        going: set[_Caller] = set()
        has_changed = True
        while has_changed:
            has_changed = False
            for each in self._calls.values():
                if id(each) in ending:
                    continue
                executor = executors.get(each.request)
                if executor is not None:
                    ends = executor in going
                else:
                    ends = all(self._is_served(target, waiting, going) for target in each.targets)
                if ends:
                    ending.add(id(each))
                    has_changed = True
            for caller, calls in waiting.items():
                if caller not in going and all(id(each) in ending for each in calls):
                    going.add(caller)
                    has_changed = True
        return id(call) in ending

    def _is_served(self, model: str, waiting: Mapping[_Caller, object], going: set[_Caller]) -> bool:
        """Whether some instance of a model will take what is queued."""
        stuck = sum(self._model_of(caller) == model and caller not in going for caller in waiting)
        return stuck < self._instance_count(model)

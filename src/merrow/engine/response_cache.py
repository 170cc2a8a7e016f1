"""The response cache: answers of a model that come from memory, because the same was asked before.

One store serves all models whose configuration says `response_cache { enable: true }`. Between the door and the model's
driver stands a `ModelCache`:

    a request ──► key ──► look-up ──┬─ hit ──► answered, in its turn; the model sees nothing
                                    └─ miss ─► driver ─► its response is stored on its way to the client

The key covers all that the answer may depend on: the model, what it was loaded from, its inputs (names, datatypes,
shapes, bytes), which outputs are asked for, and the request's parameters. Triton's covers names and bytes only.
Requests of a sequence, and models that are decoupled or batch sequences, are never cached. Stored are whole answers
without errors; a response's parameters are not, as in Triton.

A store that is remote is asked on a thread of its own. While that lasts the request belongs to this module, and its
model is held, so that it is not unloaded meanwhile.

Source: Triton, core/src/cache_manager.cc, response_cache.md.
"""

import hashlib
import itertools
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from merrow.core.clock import Clock
from merrow.core.errors import CancelledError, ServerError
from merrow.core.model_config import ModelConfig
from merrow.core.region import RegionTensor
from merrow.core.request import Request, ResponseSink
from merrow.core.response import Response
from merrow.core.tensor import Tensor
from merrow.observe.metrics import CacheUsage
from merrow.observe.statistics import FailureReason, StatisticsRecorder
from merrow.repository import scan
from merrow.repository.plan import ModelPlan

_NUMBER = struct.Struct("<q")
_KEY_BYTE_SIZE = 32


@dataclass(frozen=True, slots=True)
class CachedTensor:
    """One output of a stored answer."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: bytes


CachedResponse = tuple[CachedTensor, ...]
"""The outputs of a stored answer, in their order."""


class ResponseStore(Protocol):
    """Where answers are kept. Called on the loop's thread; `found` is, too, and possibly before `look_up` returns."""

    @property
    def is_shared(self) -> bool:
        """Whether other servers use it, or it outlives this one."""

    def usage(self) -> CacheUsage | None:
        """What was counted; None for a store that publishes no metrics."""

    def look_up(self, key: bytes, found: Callable[[CachedResponse | None], None]) -> None:
        """Find an answer; None if there is none, or it cannot be had."""

    def insert(self, key: bytes, response: CachedResponse) -> None:
        """Keep an answer, if there is room for it."""

    async def close(self) -> None:
        """Release what the store holds."""


class CachedDriver(Protocol):
    """What a ModelCache needs of the driver behind it."""

    def enqueue(self, request: Request, now_ns: int) -> None: ...
    def answer_at_once(self, request: Request, response: Response, now_ns: int) -> None: ...


class ModelCache:
    """The response cache of one model version.

    Args:
        fingerprint: what the key has of the model: its name, version, and what it was loaded from.
        output_names: every output of the model.
    """

    def __init__(
        self,
        store: ResponseStore,
        fingerprint: Callable[[], bytes],
        output_names: Sequence[str],
        driver: CachedDriver,
        recorder: StatisticsRecorder,
        clock: Clock,
    ) -> None:
        self._store = store
        self._fingerprint = fingerprint
        self._output_names = frozenset(output_names)
        self._driver = driver
        self._recorder = recorder
        self._clock = clock

    def enqueue(self, request: Request, now_ns: int, hold: Callable[[], None], release: Callable[[], None]) -> None:
        """Answer a validated request from the store, or hand it to the driver.

        Args:
            hold, release: called around a look-up that takes time; the model must not go meanwhile.

        Raises:
            ServerError: the driver refuses it.
        """
        if request.correlation_id or request.flags:
            self._driver.enqueue(request, now_ns)
            return
        try:
            fingerprint = self._fingerprint()
        except ServerError:
            # Of an ensemble whose models are not all there; its driver says so.
            self._driver.enqueue(request, now_ns)
            return
        # What the key was made of is what the model must see: a client can change its shared memory at any time.
        for name, tensor in request.inputs.items():
            if isinstance(tensor, RegionTensor):
                request.inputs[name] = Tensor(name, tensor.datatype, tensor.shape, tensor.data)
        lookup = _Lookup(self, request, self._key(fingerprint, request), now_ns)
        self._store.look_up(lookup.key, lookup.on_found)
        if lookup.refusal is not None:
            raise lookup.refusal
        if not lookup.is_done:
            hold()
            request.owner = lookup
            lookup.release = release

    def on_hit(self, request: Request, cached: CachedResponse, start_ns: int) -> None:
        now_ns = self._clock()
        request.queue_ns = start_ns
        outputs = [Tensor(tensor.name, tensor.datatype, tensor.shape, tensor.data) for tensor in cached]
        self._recorder.record_cache_hit(request.arrival_ns, start_ns, start_ns, now_ns)
        self._driver.answer_at_once(request, Response("", 0, request.id, outputs), now_ns)

    def on_miss(self, request: Request, key: bytes, lookup_ns: int, now_ns: int) -> None:
        request.sink = _StoringSink(self, request.sink, key, lookup_ns)
        self._driver.enqueue(request, now_ns)

    def on_failure(self, request: Request, error: ServerError) -> None:
        """A request that was accepted, and then neither found nor taken by the driver."""
        now_ns = self._clock()
        reason = FailureReason.CANCELED if request.is_cancelled else FailureReason.REJECTED
        self._recorder.record_failure(reason, request.arrival_ns, now_ns)
        response = Response(request.model_name, request.model_version, request.id, error=error)
        if request.trace is not None:
            request.trace.record_response(response, now_ns)
        request.sink.on_response(response)

    def store(self, key: bytes, response: Response, lookup_ns: int) -> None:
        start_ns = self._clock()
        self._store.insert(
            key,
            tuple(
                CachedTensor(tensor.name, tensor.datatype, tuple(tensor.shape), bytes(tensor.data))
                for tensor in response.outputs
            ),
        )
        now_ns = self._clock()
        self._recorder.record_cache_miss(lookup_ns + now_ns - start_ns, now_ns)

    def now_ns(self) -> int:
        return self._clock()

    def _key(self, fingerprint: bytes, request: Request) -> bytes:
        digest = hashlib.blake2b(fingerprint, digest_size=_KEY_BYTE_SIZE)

        def add(data: bytes | bytearray | memoryview) -> None:
            # With its length before it, nothing can be mistaken for something else put together differently.
            digest.update(_NUMBER.pack(len(data)))
            digest.update(data)

        for name, tensor in sorted(request.inputs.items()):
            add(name.encode())
            add(tensor.datatype.encode())
            add(b"".join(map(_NUMBER.pack, tensor.shape)))
            add(tensor.data)
        wanted = self._output_names.intersection(request.requested_outputs) or self._output_names
        add(b"outputs")
        for name in sorted(wanted):
            add(name.encode())
        for name, value in sorted((request.parameters or {}).items()):
            add(name.encode())
            add(f"{type(value).__name__} {value!r}".encode())
        return digest.digest()


class _Lookup:
    """A request whose answer is looked for. Its owner, as long as the store has not answered."""

    __slots__ = ("_cache", "_request", "_start_ns", "is_done", "key", "refusal", "release")

    def __init__(self, cache: ModelCache, request: Request, key: bytes, start_ns: int) -> None:
        self._cache = cache
        self._request = request
        self._start_ns = start_ns
        self.key = key
        self.is_done = False
        # Set once `enqueue` has returned without an answer.
        self.release: Callable[[], None] | None = None
        # The driver's, if it came before `enqueue` returned.
        self.refusal: ServerError | None = None

    def on_found(self, cached: CachedResponse | None) -> None:
        self.is_done = True
        cache, request = self._cache, self._request
        request.owner = None
        try:
            if request.is_cancelled:
                raise CancelledError("")
            if cached is not None:
                cache.on_hit(request, cached, self._start_ns)
            else:
                now_ns = cache.now_ns()
                cache.on_miss(request, self.key, now_ns - self._start_ns, now_ns)
        except ServerError as error:
            if self.release is None:
                self.refusal = error
            else:
                cache.on_failure(request, error)
        finally:
            if self.release is not None:
                self.release()

    def cancel(self, request: Request) -> None:
        """The client has left; the request ends when the store answers."""
        request.is_cancelled = True

    def resume(self, request: Request) -> None:
        """Nothing is being sent."""


class _StoringSink:
    """Stores the answer to a request on its way to the client."""

    __slots__ = ("_cache", "_key", "_lookup_ns", "_sink")

    def __init__(self, cache: ModelCache, sink: ResponseSink, key: bytes, lookup_ns: int) -> None:
        self._cache = cache
        self._sink = sink
        self._key = key
        self._lookup_ns = lookup_ns

    def on_response(self, response: Response) -> None:
        if response.error is None and response.is_final and not response.is_empty:
            self._cache.store(self._key, response, self._lookup_ns)
        self._sink.on_response(response)


class ResponseCaches:
    """Makes the cache of each model that has one.

    Args:
        store: None without a response cache; then a configuration that asks for it is ignored, as in Triton.
    """

    def __init__(self, store: ResponseStore | None, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._load_count = itertools.count()

    def fingerprint(self, plan: ModelPlan, version: int, config_json: str) -> bytes:
        """What the keys have of a version that is being loaded. Reads its files, where the store is a shared one.

        In this server's own store, what one load left is not for the next: it may have read anything.
        """
        if self._store is None:
            return b""
        digest = hashlib.blake2b(f"{plan.name}\n{version}\n{config_json}\n".encode(), digest_size=_KEY_BYTE_SIZE)
        if not self._store.is_shared:
            digest.update(str(next(self._load_count)).encode())
        elif plan.config.has_response_cache:
            for path, content in scan.read_files(f"{plan.directory}/{version}"):
                digest.update(f"{path} {len(content)}\n".encode())
                digest.update(content)
        else:
            # Needed only if an ensemble that is cached is made of it: not worth reading everything.
            digest.update(repr(sorted(plan.modification_times.items())).encode())
        return digest.digest()

    def cache_of(
        self,
        config: ModelConfig,
        fingerprint: Callable[[], bytes],
        driver: CachedDriver,
        recorder: StatisticsRecorder,
    ) -> ModelCache | None:
        """The cache of a version; None if it has none."""
        if self._store is None or not config.has_response_cache:
            return None
        names = [output.name for output in config.output]
        return ModelCache(self._store, fingerprint, names, driver, recorder, self._clock)

"""The way of a request past the cache, over a driver that answers when the test says so."""

from collections.abc import Callable
from pathlib import Path

import pytest

from merrow.core.errors import CancelledError, InternalError, NotFoundError, ServerError, UnavailableError
from merrow.core.model_config import ModelConfig, ModelOutput, ModelResponseCache
from merrow.core.region import RegionTensor
from merrow.core.request import SEQUENCE_START, Request
from merrow.core.response import Response
from merrow.core.tensor import Tensor
from merrow.engine.local_cache import LocalStore
from merrow.engine.response_cache import CachedResponse, CachedTensor, ModelCache, ResponseCaches
from merrow.observe.metrics import CacheUsage
from merrow.observe.statistics import FailureReason, StatisticsRecorder
from merrow.repository.plan import ModelPlan
from merrow.testing.manual_clock import ManualClock


class Sink:
    def __init__(self) -> None:
        self.responses: list[Response] = []

    def on_response(self, response: Response) -> None:
        self.responses.append(response)


class FakeDriver:
    def __init__(self) -> None:
        self.queued: list[Request] = []
        self.refusal: ServerError | None = None

    def enqueue(self, request: Request, now_ns: int) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.queued.append(request)

    def answer_at_once(self, request: Request, response: Response, now_ns: int) -> None:
        request.sink.on_response(response)

    def answer(self, response: Response) -> None:
        self.queued.pop(0).sink.on_response(response)


class SlowStore:
    """Answers look-ups when the test says so."""

    is_shared = True

    def __init__(self) -> None:
        self.waiting: list[Callable[[CachedResponse | None], None]] = []

    def usage(self) -> CacheUsage | None:
        return None

    def look_up(self, key: bytes, found: Callable[[CachedResponse | None], None]) -> None:
        self.waiting.append(found)

    def insert(self, key: bytes, response: CachedResponse) -> None:
        pass

    async def close(self) -> None:
        pass


class World:
    def __init__(self, store: LocalStore | SlowStore | None = None) -> None:
        self.clock = ManualClock()
        self.store = LocalStore(100_000, self.clock) if store is None else store
        self.driver = FakeDriver()
        self.recorder = StatisticsRecorder()
        self.fingerprint = b"model 1"
        self.holds = 0
        self.cache = ModelCache(
            self.store, lambda: self.fingerprint, ("OUT", "MORE"), self.driver, self.recorder, self.clock
        )

    def hold(self) -> None:
        self.holds += 1

    def release(self) -> None:
        self.holds -= 1

    def send(self, data: bytes = b"1234", **fields: object) -> tuple[Request, Sink]:
        sink = Sink()
        inputs = fields.pop("inputs", None) or {"IN": Tensor("IN", "UINT8", (len(data),), data)}
        request = Request("m", 1, sink, inputs, **fields)  # type: ignore[arg-type]
        request.arrival_ns = self.clock()
        self.cache.enqueue(request, self.clock(), self.hold, self.release)
        return request, sink


def reply(data: bytes = b"answer", **fields: object) -> Response:
    return Response("m", 1, outputs=[Tensor("OUT", "UINT8", (len(data),), data)], **fields)  # type: ignore[arg-type]


def is_cached(world: World, **fields: object) -> bool:
    """Whether a request is answered without the model."""
    _, sink = world.send(**fields)  # type: ignore[arg-type]
    world.driver.queued.clear()
    return bool(sink.responses)


def test_the_second_request_is_answered_without_the_model():
    world = World()
    _, first = world.send(id="a")
    world.driver.answer(reply(parameters={"p": 1}))
    _, second = world.send(id="b")

    assert world.driver.queued == []
    assert first.responses[0].parameters == {"p": 1}
    (response,) = second.responses
    assert (response.id, response.parameters) == ("b", None)
    assert [(output.name, output.shape, bytes(output.data)) for output in response.outputs] == [
        ("OUT", (6,), b"answer")
    ]


def test_what_is_stored_is_a_copy():
    world = World()
    data = bytearray(b"answer")
    world.send()
    world.driver.answer(Response("m", 1, outputs=[Tensor("OUT", "UINT8", (6,), data)]))
    data[:] = b"------"

    _, sink = world.send()
    assert bytes(sink.responses[0].outputs[0].data) == b"answer"


def test_hits_and_misses_are_counted_as_triton_counts_them():
    world = World()
    world.send()
    world.clock.advance(1000)
    world.recorder.record_success(1, world.clock() - 1000, world.clock(), world.clock(), 0, 0, 0, world.clock())
    world.driver.answer(reply())
    world.send()

    statistics = world.recorder.snapshot("m", 1, 0, 0)
    assert (statistics.success.count, statistics.queue.count, statistics.compute_infer.count) == (2, 2, 1)
    assert (statistics.cache_hit.count, statistics.cache_miss.count) == (1, 1)
    assert statistics.inference_count == 1


@pytest.mark.parametrize(
    "other",
    [
        {"data": b"12345"},
        {"inputs": {"OTHER": Tensor("OTHER", "UINT8", (4,), b"1234")}},
        {"inputs": {"IN": Tensor("IN", "INT8", (4,), b"1234")}},
        {"inputs": {"IN": Tensor("IN", "UINT8", (2, 2), b"1234")}},
        {"requested_outputs": ("OUT",)},
        {"parameters": {"k": 1}},
        {"parameters": {"k": True}},
        {"parameters": {"k": "1"}},
    ],
)
def test_the_key_covers_what_the_answer_may_depend_on(other: dict[str, object]):
    world = World()
    world.send()
    world.driver.answer(reply())

    assert is_cached(world)
    assert not is_cached(world, **other)


def test_another_load_of_the_model_has_other_answers():
    world = World()
    world.send()
    world.driver.answer(reply())
    world.fingerprint = b"model 2"

    assert not is_cached(world)


def test_names_of_all_outputs_mean_the_same_as_none():
    world = World()
    world.send()
    world.driver.answer(reply())

    assert is_cached(world, requested_outputs=("MORE", "OUT"))
    assert is_cached(world, id="x", priority=3, timeout_us=5)


def test_inputs_are_told_apart_wherever_they_are_cut():
    world = World()
    two = {name: Tensor(name, "UINT8", (2,), data) for name, data in (("A", b"12"), ("B", b"34"))}
    world.send(inputs=two)
    world.driver.answer(reply())

    shifted = {name: Tensor(name, "UINT8", (len(data),), data) for name, data in (("A", b"123"), ("B", b"4"))}
    assert not is_cached(world, inputs=shifted)
    assert is_cached(world, inputs=dict(reversed(two.items())))


@pytest.mark.parametrize("fields", [{"correlation_id": 1}, {"correlation_id": "s"}, {"flags": SEQUENCE_START}])
def test_requests_of_a_sequence_are_not_cached(fields: dict[str, object]):
    world = World()
    world.send(**fields)  # type: ignore[arg-type]
    world.driver.answer(reply())

    assert not is_cached(world, **fields)
    assert world.recorder.snapshot("m", 1, 0, 0).cache_miss.count == 0


@pytest.mark.parametrize(
    "response",
    [
        Response("m", 1, error=InternalError("no")),
        Response("m", 1, is_empty=True),
        Response("m", 1, outputs=[Tensor("OUT", "UINT8", (1,), b"1")], is_final=False),
    ],
)
def test_only_whole_answers_without_errors_are_stored(response: Response):
    world = World()
    world.send()
    world.driver.answer(response)

    assert not is_cached(world)


class ChangingMemory:
    """A client's shared memory that is another one each time that it is read."""

    byte_size = 4
    file = None
    file_offset = 0
    reads = 0

    def read(self) -> bytes:
        self.reads += 1
        return b"%4d" % self.reads

    def write(self, data: object) -> None:
        raise AssertionError


def test_the_model_sees_what_the_key_was_made_of():
    world = World()
    memory = ChangingMemory()
    world.send(inputs={"IN": RegionTensor("IN", "UINT8", (4,), memory)})
    (request,) = world.driver.queued

    assert request.inputs["IN"].data == b"   1"
    assert not isinstance(request.inputs["IN"], RegionTensor)
    assert memory.reads == 1


def test_a_refusal_of_the_driver_reaches_the_door():
    world = World()
    world.driver.refusal = UnavailableError("full")

    with pytest.raises(UnavailableError, match="full"):
        world.send()


def test_an_ensemble_without_its_models_is_left_to_its_driver():
    world = World()

    def missing() -> bytes:
        raise NotFoundError("no model")

    world.cache = ModelCache(world.store, missing, (), world.driver, world.recorder, world.clock)
    world.send()

    assert len(world.driver.queued) == 1


def test_while_a_store_is_asked_the_model_is_held():
    store = SlowStore()
    world = World(store)
    request, sink = world.send()
    assert (world.holds, world.driver.queued) == (1, [])
    assert request.owner is not None
    request.owner.resume(request)
    store.waiting.pop()((CachedTensor("OUT", "UINT8", (1,), b"1"),))

    assert world.holds == 0
    assert len(sink.responses) == 1


def test_what_a_slow_store_does_not_have_goes_to_the_driver():
    store = SlowStore()
    world = World(store)
    _, sink = world.send()
    store.waiting.pop()(None)
    world.driver.answer(reply())

    assert world.holds == 0
    assert len(sink.responses) == 1


def test_a_refusal_that_comes_late_is_an_answer():
    store = SlowStore()
    world = World(store)
    _, sink = world.send(id="r")
    world.driver.refusal = UnavailableError("full")
    store.waiting.pop()(None)

    (response,) = sink.responses
    assert response.error is world.driver.refusal
    assert response.id == "r"
    assert world.recorder.snapshot("m", 1, 0, 0).failures[FailureReason.REJECTED] == 1
    assert world.holds == 0


def test_a_client_that_leaves_meanwhile_is_not_served():
    store = SlowStore()
    world = World(store)
    request, sink = world.send()
    assert request.owner is not None
    request.owner.cancel(request)
    store.waiting.pop()(None)

    assert isinstance(sink.responses[0].error, CancelledError)
    assert world.driver.queued == []


CACHED = ModelConfig(name="m", output=(ModelOutput(name="OUT"),), response_cache=ModelResponseCache(True))


def test_a_model_is_cached_where_both_it_and_the_server_want_it():
    clock, driver, recorder = ManualClock(), FakeDriver(), StatisticsRecorder()
    caches = ResponseCaches(LocalStore(10_000, clock), clock)

    assert caches.cache_of(CACHED, bytes, driver, recorder) is not None
    assert caches.cache_of(ModelConfig(name="m"), bytes, driver, recorder) is None
    assert ResponseCaches(None, clock).cache_of(CACHED, bytes, driver, recorder) is None
    assert ResponseCaches(None, clock).fingerprint(ModelPlan("m", "", CACHED, (1,)), 1, "") == b""


def test_of_this_servers_own_store_every_load_begins_anew():
    caches = ResponseCaches(LocalStore(10_000, ManualClock()), ManualClock())
    plan = ModelPlan("m", "", CACHED, (1,))

    assert caches.fingerprint(plan, 1, "{}") != caches.fingerprint(plan, 1, "{}")


def test_of_a_shared_store_the_models_files_are_what_counts(tmp_path: Path):
    (tmp_path / "1" / "deep").mkdir(parents=True)
    weights = tmp_path / "1" / "deep" / "weights"
    weights.write_bytes(b"one")
    plan = ModelPlan("m", str(tmp_path), CACHED, (1,))
    caches = ResponseCaches(SlowStore(), ManualClock())
    first = caches.fingerprint(plan, 1, "{}")

    assert caches.fingerprint(plan, 1, "{}") == first
    assert caches.fingerprint(plan, 1, "{ }") != first
    weights.write_bytes(b"two")
    assert caches.fingerprint(plan, 1, "{}") != first


def test_a_model_that_is_not_cached_itself_is_told_by_the_times_of_its_files():
    caches = ResponseCaches(SlowStore(), ManualClock())
    config = ModelConfig(name="m")
    first = caches.fingerprint(ModelPlan("m", "", config, (1,), modification_times={"1/model.py": 1}), 1, "{}")

    assert first != caches.fingerprint(ModelPlan("m", "", config, (1,), modification_times={"1/model.py": 2}), 1, "{}")

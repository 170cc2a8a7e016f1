"""One loaded version of a model: what it is, what it accepts, and the driver that runs it."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from merrow.backends.base import Place
from merrow.core.clock import Clock
from merrow.core.model_config import ModelConfig
from merrow.core.request import Request
from merrow.engine.instances import Signature
from merrow.engine.response_cache import ModelCache
from merrow.engine.validation import RequestValidator
from merrow.engine.warmup import WarmupSample, warm_up
from merrow.observe.statistics import ModelStatistics, StatisticsRecorder
from merrow.places.base import PlacedInstance
from merrow.repository.layout import ModelId
from merrow.repository.plan import ModelPlan


class Driver(Protocol):
    """What runs a model's requests: `engine.driver.ModelDriver`, or `engine.ensemble.EnsembleDriver`."""

    @property
    def in_flight_count(self) -> int:
        """Requests accepted and not yet answered."""

    @property
    def pending_count(self) -> int:
        """Requests accepted and not yet begun by an instance."""

    @property
    def is_healthy(self) -> bool:
        """Whether it can execute requests now."""

    @property
    def instances(self) -> Sequence[PlacedInstance]:
        """The instances in service; none for an ensemble."""

    def enqueue(self, request: Request, now_ns: int) -> None:
        """Accept a validated request.

        Raises:
            ServerError: it is refused; nothing was counted and no response will come.
        """

    def run_on(self, instance: PlacedInstance, requests: Sequence[Request], now_ns: int) -> None:
        """Hand validated requests to one instance as one batch, past the queue (warm-up)."""

    def cancel(self, request: Request) -> None:
        """The client of an accepted request has left."""

    def resume(self, request: Request) -> None:
        """The client of a request that was congested takes responses again."""

    async def close_instance(self, instance: PlacedInstance) -> None:
        """Take an instance out of service, wait for what it executes, and release it."""

    async def drain(self) -> None:
        """Refuse new requests from now on, and wait until those accepted are answered."""


class _Holds:
    """How many requests of ensembles need a model until they are answered."""

    __slots__ = ("count", "none_left")

    def __init__(self) -> None:
        self.count = 0
        self.none_left: asyncio.Event | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """A model version in service. Compared by identity: a reload makes a new one.

    `config` is completed and normalised, `config_json` the same as the config endpoint prints it. `labels` holds the
    lines of an output's label file, by output name.
    """

    name: str
    version: int
    config: ModelConfig
    config_json: str
    labels: Mapping[str, tuple[str, ...]]
    is_decoupled: bool
    has_batch_dim: bool
    # Where its instances run; None for an ensemble, which has none.
    place: Place | None
    load_duration_ns: int
    validator: RequestValidator
    driver: Driver
    recorder: StatisticsRecorder
    warmup_samples: Sequence[WarmupSample]
    # What it was loaded from.
    plan: ModelPlan
    # Its instances, each with what tells it from others (`engine.instances`).
    started: Sequence[tuple[Signature, PlacedInstance]] = ()
    # None unless answers of this model are cached.
    cache: ModelCache | None = None
    # What tells what this version was loaded from; empty without a response cache.
    fingerprint: Callable[[], bytes] = bytes
    _holds: _Holds = field(default_factory=_Holds)

    @property
    def model_id(self) -> ModelId:
        """Its name, with its namespace where there are namespaces."""
        return self.plan.model_id

    @property
    def has_readiness_check(self) -> bool:
        """Whether an instance has something to say about its readiness (`engine.readiness`)."""
        return any(instance.has_readiness_check for instance in self.driver.instances)

    def statistics(self) -> ModelStatistics:
        """What was counted since this version was loaded."""
        return self.recorder.snapshot(self.name, self.version, time.monotonic_ns(), time.time_ns() // 1_000_000)

    async def warm_up(self, clock: Clock, instances: Sequence[PlacedInstance] | None = None) -> None:
        """Run the configuration's warm-up samples on these or all instances, before they take requests.

        Raises:
            InvalidArgumentError: one of them failed.
        """
        if instances is None:
            instances = self.driver.instances
        await warm_up(
            self.name, self.version, self.warmup_samples, self.validator, self.driver.run_on, instances, clock
        )

    def hold(self) -> None:
        """Keep the model accepting requests, even if it leaves the tables, until `release`."""
        self._holds.count += 1

    def release(self) -> None:
        """Undo one `hold`."""
        holds = self._holds
        holds.count -= 1
        if not holds.count and holds.none_left is not None:
            holds.none_left.set()

    async def wait_until_unheld(self) -> None:
        """Wait until nobody holds the model; one that has left the tables is not held anew."""
        holds = self._holds
        if holds.count:
            holds.none_left = asyncio.Event()
            await holds.none_left.wait()

    async def close(self) -> None:
        """Release the instances, passive ones too; the driver must be idle."""
        for instance in dict.fromkeys((*self.driver.instances, *(instance for _, instance in self.started))):
            await self.driver.close_instance(instance)

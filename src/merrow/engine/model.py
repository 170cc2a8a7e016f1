"""One loaded version of a model: what it is, what it accepts, and the driver that runs it."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from merrow.backends.base import Place
from merrow.core.clock import Clock
from merrow.core.model_config import ModelConfig
from merrow.engine.driver import ModelDriver
from merrow.engine.validation import RequestValidator
from merrow.engine.warmup import WarmupSample, warm_up
from merrow.observe.statistics import ModelStatistics, StatisticsRecorder


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
    place: Place
    load_duration_ns: int
    validator: RequestValidator
    driver: ModelDriver
    recorder: StatisticsRecorder
    warmup_samples: Sequence[WarmupSample]

    def statistics(self) -> ModelStatistics:
        """What was counted since this version was loaded."""
        return self.recorder.snapshot(self.name, self.version, time.monotonic_ns(), time.time_ns() // 1_000_000)

    async def warm_up(self, clock: Clock) -> None:
        """Run the configuration's warm-up samples, before the version takes requests.

        Raises:
            InvalidArgumentError: one of them failed.
        """
        await warm_up(self.name, self.version, self.warmup_samples, self.validator, self.driver, clock)

    async def close(self) -> None:
        """Release the instances; the driver must be idle."""
        for instance in self.driver.instances:
            await instance.close()

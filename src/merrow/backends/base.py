"""The interface between the server and whatever runs a model.

A backend is one module with one subclass of `Backend`, and one line in `backends.registry`. It knows nothing of
queues, batches being formed, sockets or statistics: it is handed a batch of validated requests and returns what
became of each. Where an instance runs (on the loop, on a thread, in a child process) is decided by `places`.
"""

import enum
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from merrow.core.errors import ServerError
from merrow.core.model_config import ModelConfig
from merrow.core.request import Request
from merrow.core.response import Response
from merrow.core.tensor import Tensor


class Place(enum.Enum):
    """Where a model's instances run; the config's parameter EXECUTION_PLACE names one."""

    INLINE = "inline"
    THREAD = "thread"
    PROCESS = "process"


@dataclass(frozen=True, slots=True)
class ModelContext:
    """What a backend is told about a model version when it loads it.

    `model_directory` is the model's folder, `version_directory` the version's in it. `config_json` is the normalised
    configuration as the config endpoint prints it. `backend_config` holds the `--backend-config` settings for this
    backend, the global ones included.
    """

    name: str
    version: int
    config: ModelConfig
    config_json: str
    model_directory: str
    version_directory: str
    backend_config: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class InstanceDescription:
    """One instance of a model: its name (`add_sub_0_0`), kind (`KIND_CPU`, ...) and device."""

    name: str
    kind: str
    device_id: int


class PrivateTensor(Tensor):
    """An input whose bytes are writable and seen by nobody else, so the model may write to them."""

    __slots__ = ()


Outcome = Response | ServerError
"""What became of one request of a batch: its (only, final) response, or why it failed."""


class Execution:
    """What became of a batch: one outcome per request, in batch order, and when (monotonic nanoseconds).

    `error` is set when the execution as a whole failed; then every outcome is that error. A response whose own
    `error` is set counts as an execution that succeeded, as in Triton.
    """

    __slots__ = ("end_ns", "input_end_ns", "outcomes", "output_start_ns", "start_ns")

    def __init__(
        self,
        outcomes: Sequence[Outcome],
        start_ns: int,
        input_end_ns: int,
        output_start_ns: int,
        end_ns: int,
    ) -> None:
        self.outcomes = outcomes
        self.start_ns = start_ns
        self.input_end_ns = input_end_ns
        self.output_start_ns = output_start_ns
        self.end_ns = end_ns


class Instance(ABC):
    """A loaded model that can execute one batch at a time, always on the same thread."""

    @abstractmethod
    def execute(self, requests: Sequence[Request]) -> Execution:
        """Run one batch.

        Args:
            requests: validated; `sum(batch_size)` is at most the model's `max_batch_size` when it batches.

        Returns:
            One outcome per request. Outputs that a request did not ask for may be included: the engine drops them.
            Responses carry `outputs`, `parameters` and `error`; the engine fills in names and ids.
        """

    def close(self) -> None:
        """Release what the instance holds. Called once, after the last `execute`, on the thread of `execute`."""


class Backend(ABC):
    """One way to run models.

    Methods are called off the loop's thread, possibly for several models at once.
    """

    name: str
    default_place: Place

    # Instances per group when the configuration says none, for KIND_CPU.
    preferred_cpu_instance_count: int = 1

    def auto_complete(self, context: ModelContext) -> ModelConfig:
        """Complete the configuration from the model's file.

        Only `max_batch_size`, `input`, `output`, the scheduling choice (if none was set) and the `decoupled` flag of
        the result are used.

        Raises:
            ServerError: the model cannot be read, or contradicts its configuration.

        Source: Triton, TRITONBACKEND_ModelSetConfig.
        """
        return context.config

    def validate(self, context: ModelContext) -> None:
        """Check the completed configuration against the model, once, before its instances are created.

        Raises:
            ServerError: they do not fit; the load fails with this text.
        """

    @abstractmethod
    def create_instance(self, context: ModelContext, instance: InstanceDescription) -> Instance:
        """Load one instance; called on the thread (or in the process) where it will execute.

        Raises:
            ServerError: it cannot be loaded.
        """

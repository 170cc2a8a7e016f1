"""The interface between the server and whatever runs a model.

A backend is one module with one subclass of `Backend`, and one line in `backends.registry`. It knows nothing of
queues, batches being formed, sockets or statistics: it is handed a batch of validated requests and returns what
became of each. Where an instance runs (on the loop, on a thread, in a child process) is decided by `places`.
"""

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from merrow.core.errors import ServerError
from merrow.core.model_config import ModelConfig
from merrow.core.request import Request
from merrow.core.response import Response
from merrow.core.tensor import Buffer, Tensor


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
    """One instance of a model: its name (`add_sub_0_0`), kind (`KIND_CPU`, ...) and device.

    `cpu_cores` are those that it is bound to (its place sees to it); empty is any. `has_own_process` says that the
    model's other instances run elsewhere: they and this one can share nothing.
    """

    name: str
    kind: str
    device_id: int
    cpu_cores: tuple[int, ...] = ()
    has_own_process: bool = False


class PrivateTensor(Tensor):
    """An input whose bytes are writable and seen by nobody else, so the model may write to them."""

    __slots__ = ()


class Deferral(enum.Enum):
    """What may become of a request of a batch instead of a response.

    DEFERRED: its responses come, or came, through `InstanceHost.send`; the last is marked final. The instance is free
    for its next batch all the same. RESCHEDULED: it goes back to its scheduler, to be executed again; responses may
    have been sent in between (iterative sequences, `TRITONSERVER_REQUEST_RELEASE_RESCHEDULE`).
    """

    DEFERRED = enum.auto()
    RESCHEDULED = enum.auto()


Outcome = Response | ServerError | Deferral
"""What became of one request of a batch: its (only, final) response, why it failed, or that it is not over.

A response that is not final stands for RESCHEDULED, and is sent if the scheduler takes the request back."""


class Execution:
    """What became of a batch: one outcome per request, in batch order, and when (monotonic nanoseconds).

    `error` is set when the execution as a whole failed; then every outcome is that error. A response whose own
    `error` is set counts as an execution that succeeded, as in Triton.
    """

    __slots__ = ("end_ns", "input_end_ns", "outcomes", "output_start_ns", "start_ns")

    is_counted = True

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


@dataclass(frozen=True, slots=True)
class LoadModel:
    """Load a model (explicit control only): answered with None when it serves. An empty `config` is none."""

    name: str
    config: str = ""
    files: Mapping[str, Buffer] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class UnloadModel:
    """Take a model out of service: answered with None when that has begun."""

    name: str
    unload_dependents: bool = False


@dataclass(frozen=True, slots=True)
class IsModelReady:
    """Answered with True or False; the version is text as in a request's path, empty for the latest."""

    name: str
    version: str = ""


@dataclass(frozen=True, slots=True)
class NewMetricFamily:
    """Answered with the number of the family, which is shared by all that ask for the same name and kind."""

    name: str
    description: str
    kind: int


@dataclass(frozen=True, slots=True)
class NewMetric:
    """Answered with the number of the metric, which is shared by all that ask for the same labels."""

    family: int
    labels: Mapping[str, str] = field(default_factory=dict)
    buckets: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class ChangeMetric:
    """`operation` is "increment", "set" or "observe"; answered with None."""

    metric: int
    operation: str
    value: float


@dataclass(frozen=True, slots=True)
class ShareCounter:
    """What `read` returns belongs to the counter as long as the model holds it, and stays; answered with None.

    For what is counted at each request, as it takes no call of the server: that reads it, on its own thread, when
    someone looks at the counter. It must not decrease. A model in a process of its own is refused (`UnsupportedError`).
    """

    metric: int
    read: Callable[[], float]


@dataclass(frozen=True, slots=True)
class ReadMetric:
    """Answered with the value."""

    metric: int


@dataclass(frozen=True, slots=True)
class DropMetric:
    """The model has let go of a metric that it was given."""

    metric: int


@dataclass(frozen=True, slots=True)
class DropMetricFamily:
    """The model has let go of a family that it was given."""

    family: int


Question = (
    LoadModel
    | UnloadModel
    | IsModelReady
    | NewMetricFamily
    | NewMetric
    | ChangeMetric
    | ShareCounter
    | ReadMetric
    | DropMetric
    | DropMetricFamily
)
"""What a model may ask of the server, other than to run a model."""

Answer = bool | int | float | None


class UncountedExecution(Execution):
    """An execution that appears in no statistics: its backend measures single responses instead (`TimedResponse`)."""

    __slots__ = ()

    is_counted = False


class InstanceHost(Protocol):
    """What the server offers a running instance. Every method may be called on any thread.

    `copies_tensors` says that what `send` and `infer` were given may be changed when they have returned; else it must
    stay as it is.
    """

    copies_tensors: bool

    def can_wait(self) -> bool:
        """Whether this thread may wait for the server: not the server's own, on which inline models run."""

    def send(self, request: Request, response: Response) -> None:
        """Answer a request whose outcome is (or will be) `Deferral.DEFERRED`, or that will be rescheduled.

        Any number of times, during `execute` or after it; `response.is_final` ends the request. A response with
        `is_empty` only says that it is over. What is sent after the final response is dropped. Waits while too much
        that was sent before has not left the server, because the client is slow.

        Raises:
            ServerError: the response cannot be sent.
        """

    def infer(self, request: Request, is_decoupled: bool, parents: Sequence[Request], trace: Request | None) -> None:
        """Run a model of the server on a request that a model made (business logic scripting); returns at once.

        Its sink hears the responses, the last marked final, on some thread: also that the request is refused.

        Args:
            is_decoupled: whether more than one response is welcome.
            parents: the requests on whose behalf it is made: when all are cancelled, it is.
            trace: the request whose trace it belongs to, if it has one.
        """

    def cancel(self, request: Request) -> None:
        """Nobody waits for the responses to a request given to `infer`."""

    def consume(self, request: Request, byte_size: int) -> None:
        """So much of the responses to a request given to `infer` was used: as much may come."""

    def ask(self, question: Question) -> Answer:
        """Wait for the server's answer.

        Raises:
            ServerError: it says no, and why.
        """

    def drop(self, question: DropMetric | DropMetricFamily) -> None:
        """As `ask`, without waiting, and even while this thread is in the middle of another call."""


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

    # Whether it may run other models (`InstanceHost.infer`).
    makes_calls: bool = False

    # Whether `is_ready` says anything that need be asked for.
    has_readiness_check: bool = False

    def is_ready(self) -> bool:
        """Whether the instance can do its work, as it says itself; called on any thread, also during `execute`.

        Raises:
            ServerError: it cannot say; it counts as not ready.
        """
        return True


class Backend(ABC):
    """One way to run models.

    Methods are called off the loop's thread, possibly for several models at once.
    """

    name: str
    default_place: Place

    # Instances per group when the configuration says none, for KIND_CPU.
    preferred_cpu_instance_count: int = 1

    @property
    def takes_gpus(self) -> bool:
        """Whether a group without kind goes to the GPUs, where there are any."""
        return False

    def batch_limit(self, config: ModelConfig) -> int | None:
        """How many batches of a model it pays to execute at once, however many instances there are; None is all."""
        return None

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
    def create_instance(self, context: ModelContext, instance: InstanceDescription, host: InstanceHost) -> Instance:
        """Load one instance; called on the thread (or in the process) where it will execute.

        Raises:
            ServerError: it cannot be loaded.
        """

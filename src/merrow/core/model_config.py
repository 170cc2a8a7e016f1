"""The configuration of a model, as values: `model_config.proto`, message by message, field by field.

The mirror follows four rules, so that one generic codec (`wire.model_config_text`) serves all of it:

* a message is the dataclass of its name, a nested message `Outer.Inner` the dataclass `OuterInner`;
* a field has its proto name (`global`, a Python keyword, is `global_`) and its proto3 default;
* an enum's value is its name (`"TYPE_FP32"`), a repeated field a tuple, a map a dict that nobody changes;
* a message field or a member of a oneof that is not set is None.

Fields stand in the order of the .proto file, which is the order of the config endpoint's JSON. A configuration is
"as written" until `repository.autofill` has normalised it; the engine sees normalised ones only.

Source: Triton, model_configuration.md; triton-inference-server/common, protobuf/model_config.proto.
"""

from dataclasses import dataclass, field

ENVIRONMENT_PARAMETER = "EXECUTION_ENV_PATH"
"""The parameter of a Python model that says where its execution environment is."""

MODEL_DIRECTORY_VARIABLE = "$$TRITON_MODEL_DIRECTORY"
"""What stands for the model's directory at the start of that path."""


@dataclass(frozen=True, slots=True)
class ModelRateLimiterResource:
    """A resource that an instance must hold while it executes; `global_` when all devices share one pool."""

    name: str = ""
    global_: bool = False
    count: int = 0


@dataclass(frozen=True, slots=True)
class ModelRateLimiter:
    """What an instance group asks of the rate limiter. Priority 2 gets half the turns of 1; 0 counts as 1."""

    resources: tuple[ModelRateLimiterResource, ...] = ()
    priority: int = 0


@dataclass(frozen=True, slots=True)
class ModelInstanceGroupSecondaryDevice:
    """An accelerator besides the instance's own device; the kind is always KIND_NVDLA."""

    kind: str = "KIND_NVDLA"
    device_id: int = 0


@dataclass(frozen=True, slots=True)
class ModelInstanceGroup:
    """`count` instances of the model on each device of the group.

    `kind` is KIND_AUTO, KIND_GPU, KIND_CPU or KIND_MODEL (the backend places the instance itself). `gpus` are device
    ids; empty with KIND_GPU means all. A `passive` instance is loaded but never given work.
    """

    name: str = ""
    kind: str = "KIND_AUTO"
    count: int = 0
    rate_limiter: ModelRateLimiter | None = None
    gpus: tuple[int, ...] = ()
    secondary_devices: tuple[ModelInstanceGroupSecondaryDevice, ...] = ()
    profile: tuple[str, ...] = ()
    passive: bool = False
    host_policy: str = ""


@dataclass(frozen=True, slots=True)
class ModelTensorReshape:
    """The shape, without batch dimension, that the backend sees instead of `dims`; may be empty (a scalar)."""

    shape: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelInput:
    """An input. `dims` has no batch dimension; -1 stands for any size."""

    name: str = ""
    data_type: str = "TYPE_INVALID"
    # FORMAT_NONE, FORMAT_NHWC or FORMAT_NCHW: what the dimensions mean; only checked, never used.
    format: str = "FORMAT_NONE"
    dims: tuple[int, ...] = ()
    reshape: ModelTensorReshape | None = None
    is_shape_tensor: bool = False
    # Requests of one batch may differ in this input's shape.
    allow_ragged_batch: bool = False
    # A request may leave it out.
    optional: bool = False
    is_non_linear_format_io: bool = False


@dataclass(frozen=True, slots=True)
class ModelOutput:
    """An output. `dims` has no batch dimension; -1 stands for any size.

    `label_filename`, relative to the model's directory, has one class name a line, for classification.
    """

    name: str = ""
    data_type: str = "TYPE_INVALID"
    dims: tuple[int, ...] = ()
    reshape: ModelTensorReshape | None = None
    label_filename: str = ""
    is_shape_tensor: bool = False
    is_non_linear_format_io: bool = False


@dataclass(frozen=True, slots=True)
class BatchInput:
    """A tensor about the batch itself, made for backends that take ragged batches.

    `kind` is one of BATCH_ELEMENT_COUNT, BATCH_ACCUMULATED_ELEMENT_COUNT, BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO,
    BATCH_MAX_ELEMENT_COUNT_AS_SHAPE, BATCH_ITEM_SHAPE, BATCH_ITEM_SHAPE_FLATTEN.
    """

    kind: str = "BATCH_ELEMENT_COUNT"
    target_name: tuple[str, ...] = ()
    data_type: str = "TYPE_INVALID"
    source_input: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class BatchOutput:
    """How an output of a ragged batch is cut up; the kind is always BATCH_SCATTER_WITH_INPUT_SHAPE."""

    target_name: tuple[str, ...] = ()
    kind: str = "BATCH_SCATTER_WITH_INPUT_SHAPE"
    source_input: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelVersionPolicyLatest:
    """The `num_versions` numerically largest versions; 0 is none."""

    num_versions: int = 0


@dataclass(frozen=True, slots=True)
class ModelVersionPolicyAll:
    """Every version."""


@dataclass(frozen=True, slots=True)
class ModelVersionPolicySpecific:
    """The versions listed, where they exist."""

    versions: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelVersionPolicy:
    """Which versions of the model's directory are served: at most one of the fields is set."""

    latest: ModelVersionPolicyLatest | None = None
    all: ModelVersionPolicyAll | None = None
    specific: ModelVersionPolicySpecific | None = None


@dataclass(frozen=True, slots=True)
class ModelOptimizationPolicyGraph:
    """How hard a runtime optimises the model's graph: -1 is off, 1 extended, 0 the runtime's default."""

    level: int = 0


@dataclass(frozen=True, slots=True)
class ModelOptimizationPolicyCudaGraphSpecShape:
    """An input's dimensions, without batch dimension."""

    dim: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelOptimizationPolicyCudaGraphSpecLowerBound:
    """The smallest batch and shapes for which a captured CUDA graph may be used."""

    batch_size: int = 0
    input: dict[str, ModelOptimizationPolicyCudaGraphSpecShape] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ModelOptimizationPolicyCudaGraphSpec:
    """A batch size and shapes for which a CUDA graph is captured."""

    batch_size: int = 0
    input: dict[str, ModelOptimizationPolicyCudaGraphSpecShape] = field(default_factory=dict)
    graph_lower_bound: ModelOptimizationPolicyCudaGraphSpecLowerBound | None = None


@dataclass(frozen=True, slots=True)
class ModelOptimizationPolicyCuda:
    """CUDA settings of the backends that have them."""

    graphs: bool = False
    busy_wait_events: bool = False
    graph_spec: tuple[ModelOptimizationPolicyCudaGraphSpec, ...] = ()
    output_copy_stream: bool = False


@dataclass(frozen=True, slots=True)
class ModelOptimizationPolicyExecutionAcceleratorsAccelerator:
    """An execution provider of a runtime and its settings."""

    name: str = ""
    parameters: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ModelOptimizationPolicyExecutionAccelerators:
    """Execution providers by the device of the instance, in order of preference."""

    gpu_execution_accelerator: tuple[ModelOptimizationPolicyExecutionAcceleratorsAccelerator, ...] = ()
    cpu_execution_accelerator: tuple[ModelOptimizationPolicyExecutionAcceleratorsAccelerator, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelOptimizationPolicyPinnedMemoryBuffer:
    """Whether copies to and from the GPU go through pinned memory."""

    enable: bool = False


@dataclass(frozen=True, slots=True)
class ModelOptimizationPolicy:
    """Hints for the backend. `priority` is PRIORITY_DEFAULT, PRIORITY_MAX or PRIORITY_MIN."""

    graph: ModelOptimizationPolicyGraph | None = None
    priority: str = "PRIORITY_DEFAULT"
    cuda: ModelOptimizationPolicyCuda | None = None
    execution_accelerators: ModelOptimizationPolicyExecutionAccelerators | None = None
    input_pinned_memory: ModelOptimizationPolicyPinnedMemoryBuffer | None = None
    output_pinned_memory: ModelOptimizationPolicyPinnedMemoryBuffer | None = None
    gather_kernel_buffer_threshold: int = 0
    eager_batching: bool = False


@dataclass(frozen=True, slots=True)
class ModelQueuePolicy:
    """What a queue of the dynamic batcher does with requests that wait.

    `timeout_action` is REJECT or DELAY (served when nothing else waits). A timeout of 0 is none. With
    `allow_timeout_override` a request's own, shorter timeout counts. A `max_queue_size` of 0 is no limit.
    """

    timeout_action: str = "REJECT"
    default_timeout_microseconds: int = 0
    allow_timeout_override: bool = False
    max_queue_size: int = 0


@dataclass(frozen=True, slots=True)
class ModelDynamicBatching:
    """Requests of a model that batches are run together.

    `priority_levels` 0 means no priorities; else 1 (highest) to `priority_levels`. `priority_queue_policy` overrides
    `default_queue_policy` for a level.
    """

    preferred_batch_size: tuple[int, ...] = ()
    max_queue_delay_microseconds: int = 0
    preserve_ordering: bool = False
    priority_levels: int = 0
    default_priority_level: int = 0
    default_queue_policy: ModelQueuePolicy | None = None
    priority_queue_policy: dict[int, ModelQueuePolicy] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ModelSequenceBatchingControl:
    """A fact about the sequence that the model receives as a tensor.

    `kind` is CONTROL_SEQUENCE_START, _READY, _END or _CORRID. The first three give the tensor's false and true value
    in one of the lists, which also says its type; CORRID gives its type in `data_type`.
    """

    kind: str = "CONTROL_SEQUENCE_START"
    int32_false_true: tuple[int, ...] = ()
    fp32_false_true: tuple[float, ...] = ()
    bool_false_true: tuple[bool, ...] = ()
    data_type: str = "TYPE_INVALID"


@dataclass(frozen=True, slots=True)
class ModelSequenceBatchingControlInput:
    """The tensor `name` that carries a control."""

    name: str = ""
    control: tuple[ModelSequenceBatchingControl, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelSequenceBatchingInitialState:
    """What a state holds when a sequence starts: zeros, or the file `initial_state/<data_file>`."""

    data_type: str = "TYPE_INVALID"
    dims: tuple[int, ...] = ()
    zero_data: bool | None = None
    data_file: str | None = None
    name: str = ""


@dataclass(frozen=True, slots=True)
class ModelSequenceBatchingState:
    """A tensor carried from each request of a sequence (`output_name`) to the next (`input_name`)."""

    input_name: str = ""
    output_name: str = ""
    data_type: str = "TYPE_INVALID"
    dims: tuple[int, ...] = ()
    # At most one.
    initial_state: tuple[ModelSequenceBatchingInitialState, ...] = ()
    use_same_buffer_for_input_output: bool = False
    use_growable_memory: bool = False


@dataclass(frozen=True, slots=True)
class ModelSequenceBatchingStrategyDirect:
    """A sequence keeps one batch slot of one instance. A batch waits for slots at most the delay."""

    max_queue_delay_microseconds: int = 0
    # 0.0 to 1.0; 0.0 runs as soon as one slot is ready.
    minimum_slot_utilization: float = 0.0


@dataclass(frozen=True, slots=True)
class ModelSequenceBatchingStrategyOldest:
    """A sequence keeps one instance; its oldest requests are batched dynamically."""

    max_candidate_sequences: int = 0
    preferred_batch_size: tuple[int, ...] = ()
    max_queue_delay_microseconds: int = 0
    preserve_ordering: bool = False


@dataclass(frozen=True, slots=True)
class ModelSequenceBatching:
    """Requests of one sequence go to the same instance, in order. With neither strategy set, direct is used."""

    direct: ModelSequenceBatchingStrategyDirect | None = None
    oldest: ModelSequenceBatchingStrategyOldest | None = None
    # Since the last arrival of the sequence; then it loses its slot.
    max_sequence_idle_microseconds: int = 0
    control_input: tuple[ModelSequenceBatchingControlInput, ...] = ()
    state: tuple[ModelSequenceBatchingState, ...] = ()
    # A request may be run again by the backend's wish, until it says that it is done.
    iterative_sequence: bool = False


@dataclass(frozen=True, slots=True)
class ModelEnsemblingStep:
    """One model of an ensemble. The maps go from the model's tensor names to the ensemble's.

    `model_version` -1 is the latest; 0, the default, is version 0.
    """

    model_name: str = ""
    model_version: int = 0
    input_map: dict[str, str] = field(default_factory=dict)
    output_map: dict[str, str] = field(default_factory=dict)
    model_namespace: str = ""


@dataclass(frozen=True, slots=True)
class ModelEnsembling:
    """The steps of an ensemble; the tensors they exchange decide their order.

    `max_inflight_requests` bounds, for each step, the responses of decoupled steps that wait for it; 0 is no limit.
    """

    step: tuple[ModelEnsemblingStep, ...] = ()
    max_inflight_requests: int = 0


@dataclass(frozen=True, slots=True)
class ModelParameter:
    """A parameter for the backend."""

    string_value: str = ""


@dataclass(frozen=True, slots=True)
class ModelWarmupInput:
    """The content of an input of a warm-up request: one of zeros, random values, or `warmup/<input_data_file>`."""

    data_type: str = "TYPE_INVALID"
    dims: tuple[int, ...] = ()
    zero_data: bool | None = None
    random_data: bool | None = None
    input_data_file: str | None = None


@dataclass(frozen=True, slots=True)
class ModelWarmup:
    """A sample run on every instance before it takes requests.

    `batch_size` requests run together; 0 skips the sample. `count` repeats it; 0 counts as 1.
    """

    name: str = ""
    batch_size: int = 0
    inputs: dict[str, ModelWarmupInput] = field(default_factory=dict)
    count: int = 0


@dataclass(frozen=True, slots=True)
class ModelOperations:
    """Libraries of custom operators, which the runtime loads first."""

    op_library_filename: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelTransactionPolicy:
    """`decoupled`: the model answers a request with any number of responses, in any order."""

    decoupled: bool = False


@dataclass(frozen=True, slots=True)
class ModelRepositoryAgentsAgent:
    """An agent that acts on the model's files when it is loaded and unloaded."""

    name: str = ""
    parameters: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ModelRepositoryAgents:
    """The agents, in the order in which they act."""

    agents: tuple[ModelRepositoryAgentsAgent, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelResponseCache:
    """Whether answers of this model may come from the server's response cache."""

    enable: bool = False


@dataclass(frozen=True, slots=True)
class ModelMetricsMetricControlMetricIdentifier:
    """Which metric is meant, by its family's name."""

    family: str = ""


@dataclass(frozen=True, slots=True)
class ModelMetricsMetricControlHistogramOptions:
    """Upper bounds of a histogram's buckets, in the metric's unit."""

    buckets: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelMetricsMetricControl:
    """Settings of one metric of this model."""

    metric_identifier: ModelMetricsMetricControlMetricIdentifier | None = None
    histogram_options: ModelMetricsMetricControlHistogramOptions | None = None


@dataclass(frozen=True, slots=True)
class ModelMetrics:
    """Settings of this model's metrics."""

    metric_control: tuple[ModelMetricsMetricControl, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The configuration of a model.

    `max_batch_size` 0 means that tensors have no batch dimension; above 0, the first dimension of every tensor counts
    the rows of a request. At most one of `dynamic_batching`, `sequence_batching` and `ensemble_scheduling` is set;
    with none, a request runs alone.
    """

    name: str = ""
    # The older way to name a backend; "ensemble" for an ensemble.
    platform: str = ""
    backend: str = ""
    runtime: str = ""
    version_policy: ModelVersionPolicy | None = None
    max_batch_size: int = 0
    input: tuple[ModelInput, ...] = ()
    output: tuple[ModelOutput, ...] = ()
    batch_input: tuple[BatchInput, ...] = ()
    batch_output: tuple[BatchOutput, ...] = ()
    optimization: ModelOptimizationPolicy | None = None
    dynamic_batching: ModelDynamicBatching | None = None
    sequence_batching: ModelSequenceBatching | None = None
    ensemble_scheduling: ModelEnsembling | None = None
    instance_group: tuple[ModelInstanceGroup, ...] = ()
    # The model's file in its version directory, and other files for CUDA compute capabilities ("7.5").
    default_model_filename: str = ""
    cc_model_filenames: dict[str, str] = field(default_factory=dict)
    # Labels that the model's metrics carry besides their own.
    metric_tags: dict[str, str] = field(default_factory=dict)
    parameters: dict[str, ModelParameter] = field(default_factory=dict)
    model_warmup: tuple[ModelWarmup, ...] = ()
    model_operations: ModelOperations | None = None
    model_transaction_policy: ModelTransactionPolicy | None = None
    model_repository_agents: ModelRepositoryAgents | None = None
    response_cache: ModelResponseCache | None = None
    model_metrics: ModelMetrics | None = None

    @property
    def is_decoupled(self) -> bool:
        return self.model_transaction_policy is not None and self.model_transaction_policy.decoupled

    @property
    def is_ensemble(self) -> bool:
        return self.platform == "ensemble"

    @property
    def has_batch_dim(self) -> bool:
        return self.max_batch_size > 0

    @property
    def has_response_cache(self) -> bool:
        return self.response_cache is not None and self.response_cache.enable

"""Contexts and requests for tests of the probes."""

import numpy as np

from merrow.backends.base import InstanceDescription, ModelContext
from merrow.core.model_config import (
    ModelConfig,
    ModelInput,
    ModelOutput,
    ModelParameter,
    ModelSequenceBatching,
    ModelSequenceBatchingControl,
    ModelSequenceBatchingControlInput,
)
from merrow.core.request import Request
from merrow.core.tensor import Tensor

CPU = InstanceDescription("m_0", "KIND_CPU", 0)
GPU = InstanceDescription("m_0", "KIND_GPU", 0)


def context(config):
    return ModelContext("m", 1, config, "{}", "/models/m", "/models/m/1")


def tensors(kind, *descriptions, **settings):
    """Inputs or outputs: (name, datatype, dims)."""
    return tuple(
        kind(name=name, data_type=f"TYPE_{datatype}", dims=dims, **settings) for name, datatype, dims in descriptions
    )


def config(inputs, outputs, max_batch_size=0, parameters=None, batching=None, optional=False):
    return ModelConfig(
        name="m",
        max_batch_size=max_batch_size,
        input=tensors(ModelInput, *inputs, optional=optional),
        output=tensors(ModelOutput, *outputs),
        parameters={key: ModelParameter(str(value)) for key, value in (parameters or {}).items()},
        sequence_batching=batching,
    )


def batching(*controls, **settings):
    """`sequence_batching` with controls of these names; one given as (name, data_type) is a correlation id."""
    return ModelSequenceBatching(
        control_input=tuple(
            ModelSequenceBatchingControlInput(
                control if isinstance(control, str) else control[0],
                (ModelSequenceBatchingControl(data_type="TYPE_INVALID" if isinstance(control, str) else control[1]),),
            )
            for control in controls
        ),
        **settings,
    )


class NoSink:
    def on_response(self, response):
        raise AssertionError("a backend answers through its host")


def request(correlation_id=1, **inputs):
    """Inputs are arrays, or lists of INT32."""
    arrays = {
        name: value if isinstance(value, np.ndarray) else np.array(value, np.int32) for name, value in inputs.items()
    }
    return Request(
        "m",
        1,
        NoSink(),
        {name: Tensor.from_numpy(name, array) for name, array in arrays.items()},
        correlation_id=correlation_id,
    )


def outcomes(execution):
    """Of each request: its outputs by name, or its error's text."""
    return [
        {output.name: output.as_numpy().tolist() for output in outcome.outputs}
        if getattr(outcome, "error", None) is None and hasattr(outcome, "outputs")
        else getattr(getattr(outcome, "error", None) or outcome, "message", outcome)
        for outcome in execution.outcomes
    ]

"""The `onnxruntime` backend: models that are ONNX files, through the package of the same name.

Loading looks at the file twice. `auto_complete` opens it unoptimised to learn the tensors' names, types and shapes,
when the configuration leaves its inputs or outputs out; `create_instance` opens it for good, and checks the
configuration against it.

The instances of a model that run on the CPU share one session, which takes any number of runs at once: its weights are
in memory once, and its threads are divided as `threads` says. An instance of kind KIND_GPU has a session on its device,
if the installed package can (onnxruntime-gpu).

Source: Triton, onnxruntime_backend, README.md and onnxruntime.cc.
"""

import logging
import os
import weakref
from typing import Any

from merrow.backends.base import Backend, Instance, InstanceDescription, InstanceHost, ModelContext, Place
from merrow.backends.onnx.instance import OnnxInstance
from merrow.backends.onnx.runtime import (
    CPU_PROVIDERS,
    GLOBAL_POOL,
    open_session,
    providers_of,
    require_package,
    runs_on_gpus,
    session_options,
    signature_of,
    signature_options,
    uses_global_pool,
)
from merrow.backends.onnx.signature import check_config, complete_config
from merrow.backends.onnx.threads import (
    INTER_OP,
    INTRA_OP,
    batches_at_once,
    chosen_thread_count,
    core_count,
    instance_count,
    integer,
    thread_budget,
)
from merrow.core.errors import UnavailableError, UnsupportedError
from merrow.core.model_config import ModelConfig

_LOG = logging.getLogger("merrow.backends")

DEFAULT_MAX_BATCH_SIZE = 4


class OnnxBackend(Backend):
    """See the module."""

    name = "onnxruntime"
    default_place = Place.THREAD
    preferred_cpu_instance_count = 2

    def __init__(self) -> None:
        require_package()
        # By the cores that the instances are bound to. An instance that is closed lets go of its session.
        self._shared_sessions: weakref.WeakValueDictionary[tuple[int, ...], Any] = weakref.WeakValueDictionary()

    @property
    def takes_gpus(self) -> bool:
        return runs_on_gpus()

    def batch_limit(self, config: ModelConfig) -> int | None:
        if any(group.kind == "KIND_GPU" for group in config.instance_group) or chosen_thread_count(config):
            return None
        limit = batches_at_once(config, core_count())
        return limit if limit < instance_count(config) else None

    def auto_complete(self, context: ModelContext) -> ModelConfig:
        config = context.config
        if (config.input or config.batch_input) and config.output:
            _LOG.info(
                "skipping model configuration auto-complete for '%s': inputs and outputs already specified",
                context.name,
            )
            return config
        options = signature_options(context)
        session = open_session(_model_path(context, f"{context.name}_{context.version}"), options, CPU_PROVIDERS)
        default_max_batch_size = integer(
            "default-max-batch-size", context.backend_config.get("default-max-batch-size"), DEFAULT_MAX_BATCH_SIZE
        )
        return complete_config(context.name, config, signature_of(session), default_max_batch_size)

    def validate(self, context: ModelContext) -> None:
        if not uses_global_pool(context):
            for setting in (INTRA_OP, INTER_OP):
                if setting in context.backend_config:
                    _LOG.warning(
                        "--backend-config=onnxruntime,%s has no effect without --backend-config=onnxruntime,%s=1: "
                        "model '%s' has threads of its own",
                        setting,
                        GLOBAL_POOL,
                        context.name,
                    )

    def create_instance(self, context: ModelContext, instance: InstanceDescription, host: InstanceHost) -> Instance:
        config = context.config
        if instance.kind == "KIND_GPU" and not self.takes_gpus:
            raise UnsupportedError(
                f"instance '{instance.name}' of model '{context.name}' has kind KIND_GPU, but the onnxruntime that is "
                "installed runs on the CPU only; onnxruntime-gpu runs on NVIDIA GPUs"
            )
        session = self._session(context, instance)
        signature = signature_of(session)
        check_config(context.name, config, signature)
        return OnnxInstance(context, instance.name, session, signature)

    def _session(self, context: ModelContext, instance: InstanceDescription) -> Any:
        """The session of an instance: a new one, or that of an instance before it."""
        config = context.config
        thread_count = chosen_thread_count(config)
        # Who chooses a number of threads gets that many for each instance.
        is_shared = instance.kind != "KIND_GPU" and not instance.has_own_process and not thread_count
        session = self._shared_sessions.get(instance.cpu_cores) if is_shared else None
        if session is None:
            options = session_options(context, thread_count or thread_budget(config, instance.has_own_process))
            session = open_session(_model_path(context, instance.name), options, providers_of(config, instance))
            if is_shared:
                self._shared_sessions[instance.cpu_cores] = session
        return session


def _model_path(context: ModelContext, instance_name: str) -> str:
    """The model's file. `model.onnx` may be a folder with the file of that name, beside its external data.

    Raises:
        UnavailableError: there is none.
    """
    path = os.path.join(context.version_directory, context.config.default_model_filename or "model.onnx")
    if os.path.isdir(path):
        path = os.path.join(path, "model.onnx")
    if not os.path.isfile(path):
        raise UnavailableError(f"unable to find '{path}' for model instance '{instance_name}'")
    return path

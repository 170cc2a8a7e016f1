"""How full a GPU's memory is, for `--model-load-gpu-limit`."""

import time

from merrow.observe.gpu_usage import collect_gpu_usage


def device_memory_use(device_id: int) -> float | None:
    """The fraction of a GPU's memory that is in use, by anybody; None if there is no such GPU. Takes a while."""
    collector = collect_gpu_usage(time.monotonic_ns, interval_ns=0)
    if collector is None:
        return None
    try:
        collector.refresh()
        gpus = collector.usage()
    finally:
        collector.close()
    if device_id >= len(gpus):
        return None
    gpu = gpus[device_id]
    if gpu.memory_used_byte_size is None or not gpu.memory_total_byte_size:
        return None
    return gpu.memory_used_byte_size / gpu.memory_total_byte_size

"""The ORCA load header: how full the key-value cache of a language model is, from the metrics that its backend makes.

There is one only while a family `nv_trt_llm_kv_cache_block_metrics` tells, by its label `kv_cache_block_type`, of the
blocks that are used, of all there are, and of the tokens in each.

Source: Triton, orca_http.cc; Open Request Cost Aggregation, named_metrics.
"""

import json

from merrow.observe.custom_metrics import CustomMetrics

_FAMILY = "nv_trt_llm_kv_cache_block_metrics"
_LABEL = "kv_cache_block_type"


def report_load(metrics: CustomMetrics, load_format: bytes) -> bytes | None:
    """The header's value in a format, `text` or `json`; None for another one, or if the metrics do not tell."""
    if load_format not in (b"text", b"json"):
        return None
    values = {labels.get(_LABEL): value for labels, value in metrics.find_values(_FAMILY)}
    try:
        tokens_per_block, used, total = values["tokens_per"], values["used"], values["max"]
    except KeyError:
        return None
    if total <= 0:
        return None
    utilization = used / total
    capacity = int(total * tokens_per_block)
    if load_format == b"json":
        named = {"kv_cache_utilization": utilization, "max_token_capacity": capacity}
        return b"JSON " + json.dumps({"named_metrics": named}, separators=(",", ":")).encode()
    return b"TEXT named_metrics.kv_cache_utilization=%.6f, named_metrics.max_token_capacity=%d" % (
        utilization,
        capacity,
    )

"""153 configurations that the real Triton was given, and what it made of them: text by text, JSON by JSON.

`recorded_configs.json` holds, for each, its config.pbtxt and either how the config endpoint's answer differs from that
of the first one, or why the model was refused: when the repository was polled (`poll_failure`, from the log), or when
its version was created (`load_error`, from the answer to the load request).
"""

import json
from pathlib import Path
from typing import Any

import pytest

from merrow.core.errors import ServerError
from merrow.repository.autofill import complete_ensemble
from merrow.repository.plan import ModelPlan, PollFailure, config_json, finish_config, plan_model
from merrow.repository.scan import ModelDirectory

RECORDED = json.loads((Path(__file__).parent / "recorded_configs.json").read_text(encoding="utf-8"))

# The order of the config endpoint's keys: that of the .proto file.
KEYS = (
    "name",
    "platform",
    "backend",
    "runtime",
    "version_policy",
    "max_batch_size",
    "input",
    "output",
    "batch_input",
    "batch_output",
    "optimization",
    "dynamic_batching",
    "sequence_batching",
    "ensemble_scheduling",
    "instance_group",
    "default_model_filename",
    "cc_model_filenames",
    "metric_tags",
    "parameters",
    "model_warmup",
    "model_operations",
    "model_transaction_policy",
    "model_repository_agents",
    "response_cache",
)

# Maps have no order of their own; ours are sorted.
MAPS = ("cc_model_filenames", "metric_tags", "parameters")


def _plan(model: dict[str, Any]) -> ModelPlan | PollFailure:
    name, text = model["name"], model["text"]
    has_file = not name.startswith("ens") and name not in ("nobackend", "x.custom")
    directory = ModelDirectory(
        name=name,
        directory=f"/repository/{name}",
        config_path=f"/repository/{name}/config.pbtxt",
        config_text=None if text is None else text.encode(),
        subdirectories=("1",),
        first_entries={"model.py": False} if has_file else {},
    )
    return plan_model(directory)


def _expected_json(model: dict[str, Any]) -> str:
    config = {**RECORDED["minimal"], "name": model["name"]}
    config["instance_group"] = [{**config["instance_group"][0], "name": model["name"]}]
    config.update(model["changed"])
    config = {key: config[key] for key in KEYS if key in config and key not in model["absent"]}
    for key in MAPS:
        config[key] = dict(sorted(config[key].items()))
    return json.dumps(config, ensure_ascii=False, separators=(",", ":"))


@pytest.mark.parametrize("model", RECORDED["models"], ids=lambda model: model["name"])
def test_a_configuration_fares_as_in_triton(model: dict[str, Any]):
    plan = _plan(model)
    if "poll_failure" in model:
        assert isinstance(plan, PollFailure)
        assert plan.reason == model["poll_failure"]
        return
    assert isinstance(plan, ModelPlan)
    if "load_error" in model:
        with pytest.raises(ServerError) as error:
            finish_config(plan.config, plan.config)
        assert error.value.describe() == model["load_error"]
        return
    if plan.config.is_ensemble:
        config = complete_ensemble(finish_config(plan.config, None), is_decoupled=model["name"] == "ensdec")
    else:
        config = finish_config(plan.config, plan.config)
    # A field that came after the recording.
    assert config_json(config).replace(',"max_inflight_requests":0', "") == _expected_json(model)

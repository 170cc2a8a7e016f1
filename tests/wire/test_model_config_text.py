"""The written forms of a configuration: text, JSON, message."""

import dataclasses
import json
from typing import Any

import pytest

from merrow.core import model_config as values
from merrow.core.model_config import (
    ModelConfig,
    ModelDynamicBatching,
    ModelInput,
    ModelMetrics,
    ModelMetricsMetricControl,
    ModelMetricsMetricControlHistogramOptions,
    ModelOutput,
    ModelParameter,
    ModelQueuePolicy,
    ModelTensorReshape,
    ModelVersionPolicy,
    ModelVersionPolicyAll,
)
from merrow.wire._generated import model_config_pb2
from merrow.wire.model_config_text import (
    ConfigTextError,
    decode_config_json,
    decode_config_message,
    decode_config_text,
    encode_config_json,
    encode_config_message,
)

EVERYTHING = """
name: "all"
platform: "p"
backend: "b"
runtime: "r"
version_policy { specific { versions: [1, 3] } }
max_batch_size: 8
input [{
  name: "IN" data_type: TYPE_FP32 format: FORMAT_NHWC dims: [1, -1, 3] reshape { shape: [3] }
  is_shape_tensor: true allow_ragged_batch: true optional: true is_non_linear_format_io: true
}]
output [{
  name: "OUT" data_type: TYPE_STRING dims: [2] reshape { shape: [] } label_filename: "l.txt"
  is_shape_tensor: true is_non_linear_format_io: true
}]
batch_input [{ kind: BATCH_ITEM_SHAPE target_name: ["T"] data_type: TYPE_INT32 source_input: ["IN"] }]
batch_output [{ target_name: ["OUT"] source_input: ["IN"] }]
optimization {
  graph { level: -1 } priority: PRIORITY_MIN
  cuda {
    graphs: true busy_wait_events: true output_copy_stream: true
    graph_spec [{
      batch_size: 2 input { key: "IN" value { dim: [1, 2] } }
      graph_lower_bound { batch_size: 1 input { key: "IN" value { dim: [1] } } }
    }]
  }
  execution_accelerators {
    gpu_execution_accelerator [{ name: "tensorrt" parameters { key: "a" value: "b" } }]
    cpu_execution_accelerator [{ name: "openvino" }]
  }
  input_pinned_memory { enable: true } output_pinned_memory { }
  gather_kernel_buffer_threshold: 7 eager_batching: true
}
sequence_batching {
  oldest {
    max_candidate_sequences: 2 preferred_batch_size: [4] max_queue_delay_microseconds: 5 preserve_ordering: true
  }
  max_sequence_idle_microseconds: 9
  control_input [
    { name: "S" control [{ kind: CONTROL_SEQUENCE_READY int32_false_true: [0, 1] }] },
    { name: "E" control [{ kind: CONTROL_SEQUENCE_END fp32_false_true: [0.1, -1.5e10] }] },
    { name: "B" control [{ bool_false_true: [false, true] }] },
    { name: "C" control [{ kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_UINT64 }] }
  ]
  state [{
    input_name: "SI" output_name: "SO" data_type: TYPE_INT32 dims: [1]
    initial_state [{ name: "i" data_type: TYPE_INT32 dims: [1, 2] zero_data: false }]
    use_same_buffer_for_input_output: true use_growable_memory: true
  }]
  iterative_sequence: true
}
instance_group [{
  name: "g" kind: KIND_GPU count: 2 gpus: [0, 1] profile: ["p"] passive: true host_policy: "h"
  rate_limiter { resources [{ name: "R" global: true count: 3 }] priority: 2 }
  secondary_devices [{ kind: KIND_NVDLA device_id: 5 }]
}]
default_model_filename: "f"
cc_model_filenames { key: "7.5" value: "c" }
metric_tags { key: "t" value: "v" }
parameters { key: "b" value { string_value: "2" } }
parameters { key: "a" value { string_value: "1" } }
model_warmup [{
  name: "w" batch_size: 1 count: 2
  inputs { key: "IN" value { data_type: TYPE_FP32 dims: [3] input_data_file: "d" } }
}]
model_operations { op_library_filename: ["o.so"] }
model_transaction_policy { decoupled: true }
model_repository_agents { agents [{ name: "checksum" parameters { key: "MD5:a" value: "b" } }] }
response_cache { enable: true }
model_metrics {
  metric_control [{ metric_identifier { family: "f" } histogram_options { buckets: [1, 2.5, 1e22] } }]
}
"""

EVERYTHING_JSON = (
    '{"name":"all","platform":"p","backend":"b","runtime":"r","version_policy":{"specific":{"versions":[1,3]}},'
    '"max_batch_size":8,"input":[{"name":"IN","data_type":"TYPE_FP32","format":"FORMAT_NHWC","dims":[1,-1,3],'
    '"reshape":{"shape":[3]},"is_shape_tensor":true,"allow_ragged_batch":true,"optional":true,'
    '"is_non_linear_format_io":true}],"output":[{"name":"OUT","data_type":"TYPE_STRING","dims":[2],'
    '"reshape":{"shape":[]},"label_filename":"l.txt","is_shape_tensor":true,"is_non_linear_format_io":true}],'
    '"batch_input":[{"kind":"BATCH_ITEM_SHAPE","target_name":["T"],"data_type":"TYPE_INT32","source_input":["IN"]}],'
    '"batch_output":[{"target_name":["OUT"],"kind":"BATCH_SCATTER_WITH_INPUT_SHAPE","source_input":["IN"]}],'
    '"optimization":{"graph":{"level":-1},"priority":"PRIORITY_MIN","cuda":{"graphs":true,"busy_wait_events":true,'
    '"graph_spec":[{"batch_size":2,"input":{"IN":{"dim":["1","2"]}},"graph_lower_bound":{"batch_size":1,'
    '"input":{"IN":{"dim":["1"]}}}}],"output_copy_stream":true},"execution_accelerators":{'
    '"gpu_execution_accelerator":[{"name":"tensorrt","parameters":{"a":"b"}}],'
    '"cpu_execution_accelerator":[{"name":"openvino","parameters":{}}]},"input_pinned_memory":{"enable":true},'
    '"output_pinned_memory":{"enable":false},"gather_kernel_buffer_threshold":7,"eager_batching":true},'
    '"sequence_batching":{"oldest":{"max_candidate_sequences":2,"preferred_batch_size":[4],'
    '"max_queue_delay_microseconds":5,"preserve_ordering":true},"max_sequence_idle_microseconds":9,"control_input":['
    '{"name":"S","control":[{"kind":"CONTROL_SEQUENCE_READY","int32_false_true":[0,1],"fp32_false_true":[],'
    '"bool_false_true":[],"data_type":"TYPE_INVALID"}]},'
    '{"name":"E","control":[{"kind":"CONTROL_SEQUENCE_END","int32_false_true":[],'
    '"fp32_false_true":[0.1,-15000000000.0],"bool_false_true":[],"data_type":"TYPE_INVALID"}]},'
    '{"name":"B","control":[{"kind":"CONTROL_SEQUENCE_START","int32_false_true":[],"fp32_false_true":[],'
    '"bool_false_true":[false,true],"data_type":"TYPE_INVALID"}]},'
    '{"name":"C","control":[{"kind":"CONTROL_SEQUENCE_CORRID","int32_false_true":[],"fp32_false_true":[],'
    '"bool_false_true":[],"data_type":"TYPE_UINT64"}]}],"state":[{"input_name":"SI","output_name":"SO",'
    '"data_type":"TYPE_INT32","dims":[1],"initial_state":[{"data_type":"TYPE_INT32","dims":["1","2"],"name":"i",'
    '"zero_data":false}],"use_same_buffer_for_input_output":true,"use_growable_memory":true}],'
    '"iterative_sequence":true},"instance_group":[{"name":"g","kind":"KIND_GPU","count":2,"rate_limiter":{"resources":['
    '{"name":"R","global":true,"count":3}],"priority":2},"gpus":[0,1],"secondary_devices":[{"kind":"KIND_NVDLA",'
    '"device_id":"5"}],"profile":["p"],"passive":true,"host_policy":"h"}],"default_model_filename":"f",'
    '"cc_model_filenames":{"7.5":"c"},"metric_tags":{"t":"v"},"parameters":{"a":{"string_value":"1"},'
    '"b":{"string_value":"2"}},"model_warmup":[{"name":"w","batch_size":1,"inputs":{"IN":{"data_type":"TYPE_FP32",'
    '"dims":[3],"input_data_file":"d"}},"count":2}],"model_operations":{"op_library_filename":["o.so"]},'
    '"model_transaction_policy":{"decoupled":true},"model_repository_agents":{"agents":[{"name":"checksum",'
    '"parameters":{"MD5:a":"b"}}]},"response_cache":{"enable":true},"model_metrics":{"metric_control":[{'
    '"metric_identifier":{"family":"f"},"histogram_options":{"buckets":[1,2.5,1e22]}}]}}'
)


def test_a_configuration_with_everything():
    config = decode_config_text(EVERYTHING)

    assert encode_config_json(config) == EVERYTHING_JSON
    assert decode_config_json(EVERYTHING_JSON) == config
    assert decode_config_message(encode_config_message(config)) == config


def test_everything_is_really_everything():
    """Each field of each message is set in it, but for the oneofs' other members."""
    missing: set[str] = set()
    seen: set[str] = set()
    _collect(decode_config_text(EVERYTHING), seen, missing)

    assert missing - seen == {
        "ModelConfig.dynamic_batching",
        "ModelConfig.ensemble_scheduling",
        "ModelSequenceBatching.direct",
        "ModelSequenceBatchingInitialState.data_file",
        "ModelVersionPolicy.all",
        "ModelVersionPolicy.latest",
        "ModelWarmupInput.random_data",
        "ModelWarmupInput.zero_data",
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("version_policy { latest { num_versions: 2 } }", {"version_policy": {"latest": {"num_versions": 2}}}),
        ("version_policy { all { } }", {"version_policy": {"all": {}}}),
        ("version_policy { }", {"version_policy": {}}),
        (
            "dynamic_batching { default_queue_policy { default_timeout_microseconds: 18446744073709551615 } "
            "priority_queue_policy { key: 2 value { timeout_action: DELAY } } }",
            {
                "dynamic_batching": {
                    "preferred_batch_size": [],
                    "max_queue_delay_microseconds": 0,
                    "preserve_ordering": False,
                    "priority_levels": 0,
                    "default_priority_level": 0,
                    "default_queue_policy": {
                        "timeout_action": "REJECT",
                        "default_timeout_microseconds": 2**64 - 1,
                        "allow_timeout_override": False,
                        "max_queue_size": 0,
                    },
                    "priority_queue_policy": {
                        "2": {
                            "timeout_action": "DELAY",
                            "default_timeout_microseconds": 0,
                            "allow_timeout_override": False,
                            "max_queue_size": 0,
                        }
                    },
                }
            },
        ),
        (
            "ensemble_scheduling { step [{ model_name: 'a' model_version: -1 input_map { key: 'A' value: 'B' } }] }",
            {
                "ensemble_scheduling": {
                    "step": [
                        {
                            "model_name": "a",
                            "model_version": -1,
                            "input_map": {"A": "B"},
                            "output_map": {},
                            "model_namespace": "",
                        }
                    ],
                    "max_inflight_requests": 0,
                }
            },
        ),
        (
            "sequence_batching { direct { minimum_slot_utilization: 0.3 } }",
            {
                "sequence_batching": {
                    "direct": {"max_queue_delay_microseconds": 0, "minimum_slot_utilization": 0.3},
                    "max_sequence_idle_microseconds": 0,
                    "control_input": [],
                    "state": [],
                    "iterative_sequence": False,
                }
            },
        ),
        (
            "model_warmup [{ inputs { key: 'A' value { zero_data: true } } "
            "inputs { key: 'B' value { random_data: true } } }]",
            {
                "model_warmup": [
                    {
                        "name": "",
                        "batch_size": 0,
                        "inputs": {
                            "A": {"data_type": "TYPE_INVALID", "dims": [], "zero_data": True},
                            "B": {"data_type": "TYPE_INVALID", "dims": [], "random_data": True},
                        },
                        "count": 0,
                    }
                ]
            },
        ),
    ],
)
def test_the_other_members_of_oneofs(text: str, expected: dict[str, Any]):
    config = decode_config_text(text)
    printed = json.loads(encode_config_json(config))

    for key, value in expected.items():
        assert printed[key] == value
    assert decode_config_message(encode_config_message(config)) == config
    assert decode_config_json(encode_config_json(config)) == config


def test_an_empty_configuration_prints_what_is_always_there():
    assert encode_config_json(decode_config_text("")) == (
        '{"name":"","platform":"","backend":"","runtime":"","max_batch_size":0,"input":[],"output":[],"batch_input":[],'
        '"batch_output":[],"instance_group":[],"default_model_filename":"","cc_model_filenames":{},"metric_tags":{},'
        '"parameters":{},"model_warmup":[]}'
    )
    assert decode_config_text("# nothing\n") == decode_config_json("{}") == ModelConfig()


def test_text_becomes_values():
    config = decode_config_text(
        'name: "m" input [{ name: "A" data_type: TYPE_FP32 dims: [1, -1] reshape { shape: [] } }] '
        "version_policy { all { } } dynamic_batching { priority_queue_policy { key: 1 value { } } } "
        'parameters { key: "k" value { string_value: "v" } }'
    )

    assert config == ModelConfig(
        name="m",
        input=(ModelInput("A", "TYPE_FP32", dims=(1, -1), reshape=ModelTensorReshape(())),),
        version_policy=ModelVersionPolicy(all=ModelVersionPolicyAll()),
        dynamic_batching=ModelDynamicBatching(priority_queue_policy={1: ModelQueuePolicy()}),
        parameters={"k": ModelParameter("v")},
    )


def test_text_may_be_bytes():
    assert decode_config_text('name: "é"'.encode()) == ModelConfig(name="é")


def test_json_takes_both_spellings_and_64_bit_integers_in_quotes():
    config = decode_config_json('{"maxBatchSize": 3, "output": [{"dims": ["1", 2], "label_filename": null}]}')

    assert config == ModelConfig(max_batch_size=3, output=(ModelOutput(dims=(1, 2)),))


@pytest.mark.parametrize(
    ("text", "line", "column", "detail", "excerpt"),
    [
        (
            'name: "a"\nbogus: 3',
            2,
            1,
            'Message type "inference.ModelConfig" has no field named "bogus".',
            "bogus: 3\n^",
        ),
        (
            'name: "a"\n  max_batch_size: "x"\n',
            2,
            19,
            'Couldn\'t parse integer: "x"',
            '  max_batch_size: "x"\n                  ^',
        ),
        (
            "input [{ data_type: TYPE_FOO }]",
            1,
            21,
            'Enum type "inference.DataType" has no value named TYPE_FOO.',
            "input [{ data_type: TYPE_FOO }]\n                    ^",
        ),
        (
            'name: "a" name: "b"',
            1,
            17,
            'Message type "inference.ModelConfig" should not have multiple "name" fields.',
            'name: "a" name: "b"\n                ^',
        ),
        (
            "dynamic_batching {} sequence_batching {}",
            1,
            21,
            'Field "sequence_batching" is specified along with field "dynamic_batching", another member of oneof '
            '"scheduling_choice" for message type "inference.ModelConfig".',
            "dynamic_batching {} sequence_batching {}\n                    ^",
        ),
        (
            "max_batch_size: 99999999999",
            1,
            17,
            "Value out of range: 99999999999",
            "max_batch_size: 99999999999\n                ^",
        ),
    ],
)
def test_an_error_in_text_says_where(text: str, line: int, column: int, detail: str, excerpt: str):
    with pytest.raises(ConfigTextError) as error:
        decode_config_text(text)
    assert (error.value.line, error.value.column, error.value.detail) == (line, column, detail)
    assert error.value.excerpt == excerpt
    assert str(error.value) == f"{line}:{column}: {detail}"


@pytest.mark.parametrize("text", ["input [", "input [{", 'name: "', "name", "name:", "{", "]", "\0", "name: 'a' 'b' c"])
def test_text_that_is_cut_or_nonsense(text: str):
    with pytest.raises(ConfigTextError) as error:
        decode_config_text(text)
    assert error.value.line >= 1


def test_text_that_is_no_utf8():
    with pytest.raises(ConfigTextError, match="not valid UTF-8") as error:
        decode_config_text(b'name: "\xff"')
    assert (error.value.line, error.value.column, error.value.excerpt) == (0, 0, "")
    with pytest.raises(ConfigTextError, match="Couldn't parse string"):
        decode_config_text('name: "\\377"')


def test_a_text_cut_at_every_line_is_read_or_refused_with_a_place():
    lines = EVERYTHING.splitlines()
    refused: list[ConfigTextError] = []
    for end in range(len(lines)):
        try:
            decode_config_text("\n".join(lines[:end]))
        except ConfigTextError as error:
            refused.append(error)

    assert len(refused) > 20
    assert all(1 <= error.line <= len(lines) for error in refused)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"bogus": 1}', 'Message type "inference.ModelConfig" has no field named "bogus" at "ModelConfig".'),
        (
            '{"input": [{"foo": 1}]}',
            'Failed to parse input field: Message type "inference.ModelInput" has no field named "foo" at '
            '"ModelConfig.input[0]".',
        ),
        ('{"max_batch_size": 1.5}', "Failed to parse max_batch_size field: Couldn't parse integer: 1.5"),
        ("{", "1:2: Expecting property name enclosed in double quotes"),
        ("", "1:1: Expecting value"),
        ("[]", "the configuration must be a JSON object"),
        ('"x"', "the configuration must be a JSON object"),
        (b'{"name": "\xff"}', "'utf-8' codec can't decode byte 0xff"),
        ("[" * 100_000, "maximum recursion depth exceeded"),
    ],
)
def test_json_that_is_no_configuration(text: str | bytes, message: str):
    with pytest.raises(ConfigTextError) as error:
        decode_config_json(text)
    assert str(error.value).startswith(message)


def test_strings_are_escaped_as_json():
    config = ModelConfig(name='"\\/<>\n\t\x01\x7fé\u2028😀')

    assert encode_config_json(config).startswith('{"name":"\\"\\\\/<>\\n\\t\\u0001\x7fé\u2028😀",')
    assert decode_config_json(encode_config_json(config)) == config


@pytest.mark.parametrize(
    ("number", "printed"),
    [
        (0.0, "0"),
        (1.0, "1"),
        (-3.0, "-3"),
        (0.1, "0.1"),
        (1e14, "100000000000000"),
        (1e15, "1000000000000000.0"),
        (0.1 + 0.2, "0.30000000000000004"),
        (123456.789, "123456.789"),
        (float("inf"), '"Infinity"'),
        (float("-inf"), '"-Infinity"'),
        (float("nan"), '"NaN"'),
    ],
)
def test_a_double_is_written_as_triton_writes_it(number: float, printed: str):
    options = ModelMetricsMetricControlHistogramOptions((number,))
    config = ModelConfig(model_metrics=ModelMetrics((ModelMetricsMetricControl(None, options),)))

    assert f'"buckets":[{printed}]' in encode_config_json(config)


@pytest.mark.parametrize(
    ("number", "printed"),
    [
        ("0.3", "0.3"),
        ("1234567", "1234567"),
        ("1500000", "1500000.0"),
        ("1e-10", "1e-10"),
        ("3.4028235e38", "3.40282347e38"),
    ],
)
def test_floats_are_printed_as_short_as_their_32_bits_allow(number: str, printed: str):
    config = decode_config_text(f"sequence_batching {{ direct {{ minimum_slot_utilization: {number} }} }}")

    assert f'"minimum_slot_utilization":{printed}}}' in encode_config_json(config)


def test_an_enum_value_from_the_future_stays():
    message = model_config_pb2.ModelConfig()
    message.input.add(data_type=99)

    config = decode_config_message(message)

    assert config.input[0].data_type == "99"
    assert encode_config_message(config) == message


def _collect(value: Any, seen: set[str], missing: set[str]) -> None:
    name = type(value).__name__
    assert getattr(values, name) is type(value)
    for field in dataclasses.fields(value):
        content = getattr(value, field.name)
        (missing if content is None else seen).add(f"{name}.{field.name}")
        items = content.values() if isinstance(content, dict) else content if isinstance(content, tuple) else (content,)
        for item in items:
            if dataclasses.is_dataclass(item):
                _collect(item, seen, missing)

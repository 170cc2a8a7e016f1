"""A repository of the built-in backends that test a server, as Triton's own suites configure them."""

from pathlib import Path

from merrow.testing.repository_builder import RepositoryBuilder


def boolean_control(name: str, values: str = "int32_false_true: [ 0, 1 ]") -> str:
    return f'control_input {{ name: "{name}" control {{ kind: CONTROL_SEQUENCE_{name} {values} }} }}\n'


def correlation_control(data_type: str) -> str:
    return f'control_input {{ name: "CORRID" control {{ kind: CONTROL_SEQUENCE_CORRID data_type: {data_type} }} }}\n'


START_READY = boolean_control("START") + boolean_control("READY")
ALL = START_READY + boolean_control("END")
VECTOR = """
input { name: "INPUT" data_type: TYPE_INT32 dims: [ -1 ] }
output { name: "OUTPUT" data_type: TYPE_INT32 dims: [ -1 ] }
"""
SCALAR = VECTOR.replace("-1", "1")
CPU = "instance_group { kind: KIND_CPU count: 1 }\n"


def sequence(max_batch_size: int = 4, batching: str = "", tensors: str = VECTOR, instances: str = CPU) -> str:
    return (
        f'backend: "sequence"\nmax_batch_size: {max_batch_size}\n{tensors}{instances}'
        f"sequence_batching {{ max_sequence_idle_microseconds: 5000000\n{batching}{START_READY}}}\n"
    )


def dyna_sequence(data_type: str = "TYPE_UINT64") -> str:
    return (
        f'backend: "dyna_sequence"\nmax_batch_size: 8\n{VECTOR}{CPU}'
        "sequence_batching { max_sequence_idle_microseconds: 5000000\n"
        "oldest { max_candidate_sequences: 6 preferred_batch_size: [ 4 ] }\n"
        f"{ALL}{correlation_control(data_type)}}}\n"
    )


def implicit_state(states: str) -> str:
    fp32 = "fp32_false_true: [ 0, 1 ]"
    controls = "".join(boolean_control(name, fp32) for name in ("START", "READY", "END"))
    return f"""
backend: "implicit_state"
max_batch_size: 0
input {{ name: "INPUT" data_type: TYPE_INT32 dims: [ 1 ] }}
input {{ name: "TEST_CASE" data_type: TYPE_INT32 dims: [ 1 ] }}
output {{ name: "OUTPUT" data_type: TYPE_INT32 dims: [ 1 ] }}
output {{ name: "OUTPUT_STATE" data_type: TYPE_INT8 dims: [ -1 ] }}
sequence_batching {{ {controls}
{states} }}
"""


def state(data_type: str, dims: str, settings: str = "") -> str:
    return f"""state {{ input_name: "INPUT_STATE" output_name: "OUTPUT_STATE" data_type: {data_type} dims: [ {dims} ]
{settings} initial_state {{ name: "zeros" data_type: {data_type} dims: [ {dims} ] zero_data: true }} }}"""


def iterative_sequence(is_iterative: bool = True, idle_us: int = 8_000_000) -> str:
    return (
        f'backend: "iterative_sequence"\nmax_batch_size: 1\n{SCALAR}{CPU}'
        "model_transaction_policy { decoupled: true }\n"
        f"sequence_batching {{ max_sequence_idle_microseconds: {idle_us} "
        f"iterative_sequence: {str(is_iterative).lower()} }}\n"
    )


def repeat(is_decoupled: bool = True) -> str:
    return f"""
backend: "repeat"
max_batch_size: 0
model_transaction_policy {{ decoupled: {str(is_decoupled).lower()} }}
input {{ name: "IN" data_type: TYPE_INT32 dims: [ -1 ] }}
input {{ name: "DELAY" data_type: TYPE_UINT32 dims: [ -1 ] }}
input {{ name: "WAIT" data_type: TYPE_UINT32 dims: [ 1 ] }}
output {{ name: "OUT" data_type: TYPE_INT32 dims: [ 1 ] }}
output {{ name: "IDX" data_type: TYPE_UINT32 dims: [ 1 ] }}
"""


def square(**parameters: int) -> str:
    lines = [f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}' for key, value in parameters.items()]
    return "\n".join(
        [
            'backend: "square"\nmax_batch_size: 0\nmodel_transaction_policy { decoupled: true }',
            'input { name: "IN" data_type: TYPE_INT32 dims: [ 1 ] }',
            'output { name: "OUT" data_type: TYPE_INT32 dims: [ 1 ] }',
            *lines,
        ]
    )


def build(path: Path, **models: str) -> Path:
    """Write a repository of these configurations, by name."""
    repository = RepositoryBuilder(path)
    for name, text in models.items():
        repository.add(name, f'name: "{name}"\n{text}')
    return path

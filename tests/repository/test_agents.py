import hashlib

import pytest

from merrow.core.errors import InternalError, InvalidArgumentError
from merrow.core.model_config import ModelConfig, ModelRepositoryAgents, ModelRepositoryAgentsAgent
from merrow.repository import agents

CONTENT = b"weights"


def config(name="checksum", **parameters):
    agent = ModelRepositoryAgentsAgent(name=name, parameters=parameters)
    return ModelConfig(name="m", model_repository_agents=ModelRepositoryAgents((agent,)))


def digest_of(kind, path):
    if path != "1/model.onnx":
        raise InternalError(f"failed to open file for read {path}: No such file or directory")
    return hashlib.new(kind.lower(), CONTENT).hexdigest()


def refusal(model_config):
    with pytest.raises((InternalError, InvalidArgumentError)) as caught:
        agents.check(model_config, digest_of)
    return caught.value.message


def test_a_model_without_agents_is_not_looked_at():
    agents.check(ModelConfig(name="m"), digest_of)


def test_files_with_the_expected_digests_are_taken():
    agents.check(config(**{"MD5:1/model.onnx": hashlib.md5(CONTENT).hexdigest()}), digest_of)
    agents.check(config(**{"SHA256:1/model.onnx": hashlib.sha256(CONTENT).hexdigest().upper()}), digest_of)


def test_another_file_refuses_the_model():
    found = hashlib.md5(CONTENT).hexdigest()
    assert refusal(config(**{"MD5:1/model.onnx": "00"})) == (
        f"Mismatched MD5 hash for file 1/model.onnx, expect: 00, got: {found}"
    )


def test_a_missing_file_refuses_the_model():
    assert "failed to open file for read 2/x" in refusal(config(**{"MD5:2/x": "00"}))


@pytest.mark.parametrize("key", ["1/model.onnx", "CRC:1/model.onnx", "MD5:"])
def test_a_parameter_that_says_nothing_is_refused(key):
    assert f"parameter '{key}' must be <hash>:<file>" in refusal(config(**{key: "00"}))


def test_a_file_outside_the_model_is_refused():
    assert refusal(config(**{"MD5:../x": "00"})) == "checksum agent: file '../x' is outside the model's directory"


def test_an_unknown_agent_refuses_the_model():
    assert refusal(config("decrypt")) == (
        "unable to find 'libtritonrepoagent_decrypt.so' for repo agent 'decrypt', searched: the agents that are built "
        "in (checksum)"
    )

"""Repository agents: what a configuration asks to be done about a model's files before it is loaded. Pure.

Triton loads agents as libraries; here those that it ships are built in:

    checksum    parameters `MD5:<path in the model's directory>` (also SHA1, SHA256, SHA512): the digest in hexadecimal;
                a file that is another, or missing, refuses the model

An agent that is not there refuses the model, as in Triton: loading it without would be loading something else.

Source: Triton, repository_agents.md; checksum_repository_agent/src/checksum.cc.
"""

from collections.abc import Callable, Mapping

from merrow.core.errors import InternalError, InvalidArgumentError
from merrow.core.model_config import ModelConfig
from merrow.repository import layout

HASHES = ("MD5", "SHA1", "SHA256", "SHA512")

DigestOf = Callable[[str, str], str]
"""The digest of a file in hexadecimal, by the hash's name (of `HASHES`) and the path in the model's directory."""


def check(config: ModelConfig, digest_of: DigestOf) -> None:
    """Let every agent of a configuration look at the model, in their order.

    Raises:
        ServerError: one refuses it, or is not there.
    """
    if config.model_repository_agents is None:
        return
    for agent in config.model_repository_agents.agents:
        run = _AGENTS.get(agent.name)
        if run is None:
            raise InvalidArgumentError(
                f"unable to find 'libtritonrepoagent_{agent.name}.so' for repo agent '{agent.name}', searched: the "
                f"agents that are built in ({', '.join(sorted(_AGENTS))})"
            )
        run(agent.parameters, digest_of)


def _check_sums(parameters: Mapping[str, str], digest_of: DigestOf) -> None:
    for key, expected in sorted(parameters.items()):
        kind, _, path = key.partition(":")
        if kind not in HASHES or not path:
            raise InvalidArgumentError(
                f"checksum agent: parameter '{key}' must be <hash>:<file>, with a hash of {', '.join(HASHES)}"
            )
        if not layout.contains_path(path):
            raise InvalidArgumentError(f"checksum agent: file '{path}' is outside the model's directory")
        found = digest_of(kind, path)
        if found != expected.strip().lower():
            raise InternalError(f"Mismatched {kind} hash for file {path}, expect: {expected}, got: {found}")


_AGENTS: dict[str, Callable[[Mapping[str, str], DigestOf], None]] = {"checksum": _check_sums}

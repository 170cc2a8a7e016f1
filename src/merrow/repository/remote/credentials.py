"""Credentials for remote repositories: the file that TRITON_CLOUD_CREDENTIAL_PATH names. Pure.

    { "s3": { "": { "key_id": "..", "secret_key": "..", "region": "..", "session_token": "..", "profile": ".." },
              "s3://bucket": { ... } },
      "gs": { "": "path of a key file", "gs://bucket": "another" },
      "as": { "": { "account_str": "..", "account_key": ".." } } }

Of several entries the longest that a repository's name begins with counts; "" is for all. Without the file, each
store's own package looks in its usual places: variables, configuration files, the identity of the machine.

Source: Triton, model_repository.md, "Cloud Storage with Credential file".
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from merrow.core.errors import InvalidArgumentError


@dataclass(frozen=True, slots=True)
class Credential:
    """What one entry says; "" where it says nothing. Nothing of it is ever printed."""

    key_id: str = field(default="", repr=False)
    secret_key: str = field(default="", repr=False)
    session_token: str = field(default="", repr=False)
    region: str = ""
    profile: str = ""
    key_file: str = ""
    account: str = ""
    account_key: str = field(default="", repr=False)

    def secrets(self) -> tuple[str, ...]:
        """What must not appear in any text."""
        return tuple(filter(None, (self.key_id, self.secret_key, self.session_token, self.account_key)))


NO_CREDENTIAL = Credential()


class Credentials:
    """The entries of a file, by the store's scheme and the beginning of a repository's name."""

    def __init__(self, entries: Mapping[str, Mapping[str, Credential]]) -> None:
        self._entries = entries

    def find(self, scheme: str, repository: str) -> Credential:
        """The entry for a repository; an empty one where there is none."""
        entries = self._entries.get(scheme, {})
        prefixes = [prefix for prefix in entries if repository.startswith(prefix)]
        return entries[max(prefixes, key=len)] if prefixes else NO_CREDENTIAL


def parse_credentials(text: str) -> Credentials:
    """Read the file.

    Raises:
        InvalidArgumentError: it is no JSON, or has another form; nothing of its content is in the text.
    """
    try:
        content = json.loads(text)
    except ValueError:
        raise InvalidArgumentError("the cloud credential file is not JSON") from None
    if not isinstance(content, dict):
        raise InvalidArgumentError("the cloud credential file must hold an object")
    entries: dict[str, dict[str, Credential]] = {}
    for scheme, by_prefix in content.items():
        if scheme not in _READERS:
            raise InvalidArgumentError(f"the cloud credential file has no stores but {', '.join(sorted(_READERS))}")
        if not isinstance(by_prefix, dict):
            raise InvalidArgumentError(f"the cloud credential file must hold an object for '{scheme}'")
        entries[scheme] = {prefix: _READERS[scheme](scheme, value) for prefix, value in by_prefix.items()}
    return Credentials(entries)


def _read_s3(scheme: str, value: object) -> Credential:
    members = _members(scheme, value, ("key_id", "secret_key", "session_token", "region", "profile"))
    return Credential(**members)


def _read_gs(scheme: str, value: object) -> Credential:
    if not isinstance(value, str):
        raise InvalidArgumentError(f"the cloud credential file must hold paths of key files for '{scheme}'")
    return Credential(key_file=value)


def _read_as(scheme: str, value: object) -> Credential:
    members = _members(scheme, value, ("account_str", "account_key"))
    return Credential(account=members.get("account_str", ""), account_key=members.get("account_key", ""))


def _members(scheme: str, value: object, names: tuple[str, ...]) -> dict[str, str]:
    if not isinstance(value, dict) or not all(
        name in names and isinstance(member, str) for name, member in value.items()
    ):
        raise InvalidArgumentError(
            f"the cloud credential file must hold objects with texts for {', '.join(names)} for '{scheme}'"
        )
    return value


_READERS = {"s3": _read_s3, "gs": _read_gs, "as": _read_as}

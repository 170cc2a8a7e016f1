"""From given flags and the environment to the settings of response cache, rate limiter and host policies.

Source: Triton, command_line_parser.cc: ParseCacheConfigOption, ParseRateLimiterResourceOption, ParseHostPolicyOption;
redis_cache/README.md.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from merrow.cli.flags import FlagError, FlagValues, read_bool, read_int64
from merrow.settings import HostPolicy, LocalCacheSettings, RateLimitSettings, RedisCacheSettings, SettingsError

CacheSetting = tuple[str, str, str]
"""Cache, setting and value."""

RateLimitResource = tuple[str, int, int | None]
"""Name, amount and device; None is every device."""

HostPolicySetting = tuple[str, str, tuple[int, ...]]
"""Policy, setting (`numa-node` or `cpu-cores`), and the node, or the cores."""

_USER_VARIABLE = "TRITONCACHE_REDIS_USERNAME"
_PASSWORD_VARIABLE = "TRITONCACHE_REDIS_PASSWORD"

# What the setting is called, and the field that it goes to.
_REDIS_TEXTS = {
    "host": "host",
    "user": "user",
    "password": "password",
    "cert": "certificate_file",
    "key": "key_file",
    "cacert": "root_certificate_file",
    "cacert_dir": "root_certificate_directory",
}
_REDIS_NUMBERS = {
    "port": "port",
    "db": "database",
    "connect_timeout": "connect_timeout_ms",
    "socket_timeout": "socket_timeout_ms",
    "pool_size": "pool_size",
    "max_pending": "max_pending",
}
# How long a connection of the pool is waited for: merrow has one for each thread, so there is nothing to wait for.
_REDIS_IGNORED = ("wait_timeout",)


def read_cache_setting(text: str) -> CacheSetting:
    """`<cache name>,<setting>=<value>`."""
    name, comma, rest = text.partition(",")
    setting, separator, value = rest.partition("=")
    if not comma or not name:
        raise FlagError(
            f"No cache specified. --cache-config option format is <cache name>,<setting>=<value>. Got {text}\n"
        )
    if not separator or not setting or not value:
        raise FlagError(f"--cache-config option format is '<cache name>,<setting>=<value>'. Got {text}\n")
    return name, setting, value


def read_rate_limit_resource(text: str) -> RateLimitResource:
    """`<name>:<count>`, or `<name>:<count>:<device>`."""
    name, *numbers = text.split(":")
    if not name or len(numbers) not in (1, 2):
        raise FlagError(
            "--rate-limit-resource option format is '<resource_name>:<count>:<device>' or '<resource_name>:<count>'. "
            f"Got {text}\n"
        )
    count, *device = map(read_int64, numbers)
    return name, count, device[0] if device else None


def read_host_policy(text: str) -> HostPolicySetting:
    """`<policy>,numa-node=<node>` or `<policy>,cpu-cores=<first>-<last>`."""
    policy, comma, rest = text.partition(",")
    setting, separator, value = rest.partition("=")
    if not comma or not policy or not separator or not value:
        raise FlagError(f"--host-policy option format is '<policy name>,<setting>=<value>'. Got {text}\n")
    if setting == "numa-node":
        return policy, setting, (_natural(value),)
    if setting == "cpu-cores":
        first, _, last = value.partition("-")
        cores = tuple(range(_natural(first), _natural(last or first) + 1))
        if not cores:
            raise FlagError(f"--host-policy expects cpu-cores=<first>-<last>, got {value}")
        return policy, setting, cores
    raise FlagError(f"--host-policy has the settings numa-node and cpu-cores, got '{setting}'")


def build_host_policies(given: Sequence[HostPolicySetting]) -> dict[str, HostPolicy]:
    """The policies by name; of a setting given twice, the last counts."""
    policies: dict[str, HostPolicy] = {}
    for name, setting, values in given:
        policy = policies.get(name, HostPolicy())
        if setting == "numa-node":
            policies[name] = replace(policy, numa_node=values[0])
        else:
            policies[name] = replace(policy, cpu_cores=values)
    return policies


def build_cache_settings(
    values: FlagValues, environment: Mapping[str, str], warnings: list[str]
) -> LocalCacheSettings | RedisCacheSettings | None:
    """The response cache, if there is one.

    Raises:
        FlagError: two caches, an unknown one, or an unknown setting of one.
        SettingsError: a setting has an impossible value.
    """
    given: Sequence[CacheSetting] = values.all("cache-config")
    if values.has("response-cache-byte-size"):
        size = values.last("response-cache-byte-size", 0)
        warnings.append(
            "'--response-cache-byte-size' has been deprecated! This will default to the 'local' cache implementation "
            "with the provided byte size for its config. Please use '--cache-config' instead. The equivalent "
            f"--cache-config CLI args would be: '--cache-config=local,size={size}'"
        )
        if given:
            raise FlagError(
                "Incompatible flags --response-cache-byte-size and --cache-config both provided. Please provide one "
                "or the other."
            )
        return LocalCacheSettings(size) if size else None
    if not given:
        return None
    names = {name for name, _, _ in given}
    if len(names) > 1:
        raise FlagError("found multiple cache configurations, but only a single cache is currently supported")
    settings = {setting: value for _, setting, value in given}
    (name,) = names
    if name == "local":
        return _local_settings(settings)
    if name == "redis":
        return _redis_settings(settings, environment, warnings)
    raise FlagError(f"unable to find a response cache named '{name}'; there are 'local' and 'redis'")


def build_rate_limit_settings(values: FlagValues, warnings: list[str]) -> RateLimitSettings | None:
    """The rate limiter, if it is on."""
    given: Sequence[RateLimitResource] = values.all("rate-limit-resource")
    if values.last("rate-limit", "off") == "off":
        if given:
            warnings.append("--rate-limit-resource has no effect without --rate-limit=execution_count")
        return None
    for name, count, _ in given:
        if count < 0:
            raise SettingsError(f"--rate-limit-resource expects an amount that is not negative, got {name}:{count}")
    # Of amounts given twice the largest counts, as in Triton.
    resources: dict[tuple[str, int | None], int] = {}
    for name, count, device in given:
        resources[(name, device)] = max(count, resources.get((name, device), 0))
    return RateLimitSettings(resources)


def _local_settings(settings: Mapping[str, str]) -> LocalCacheSettings:
    _refuse_unknown("local", settings, ("size",))
    if "size" not in settings:
        raise FlagError("Failed to initialize LocalCache: config didn't contain a valid 'size' field.")
    return LocalCacheSettings(read_int64(settings["size"]))


def _redis_settings(
    settings: Mapping[str, str], environment: Mapping[str, str], warnings: list[str]
) -> RedisCacheSettings:
    _refuse_unknown("redis", settings, (*_REDIS_TEXTS, *_REDIS_NUMBERS, *_REDIS_IGNORED, "tls_enabled"))
    for required in ("host", "port"):
        if required not in settings:
            raise FlagError(f"Failed to initialize RedisCache: didn't receive a '{required}' field.")
    warnings.extend(
        f"--cache-config=redis,{name} has no effect: each look-up has a connection of its own"
        for name in _REDIS_IGNORED
        if name in settings
    )
    texts = {field: settings[name] for name, field in _REDIS_TEXTS.items() if name in settings}
    texts.setdefault("user", environment.get(_USER_VARIABLE, ""))
    texts.setdefault("password", environment.get(_PASSWORD_VARIABLE, ""))
    numbers = {field: read_int64(settings[name]) for name, field in _REDIS_NUMBERS.items() if name in settings}
    fields: dict[str, Any] = {**texts, **numbers}
    return RedisCacheSettings(tls_enabled=read_bool(settings.get("tls_enabled", "false")), **fields)


def _natural(text: str) -> int:
    number = read_int64(text)
    if number < 0:
        raise FlagError(f"Invalid option value. Got {text}")
    return number


def _refuse_unknown(cache: str, settings: Mapping[str, str], known: Sequence[str]) -> None:
    for name in settings:
        if name not in known:
            raise FlagError(f"--cache-config={cache} has no setting '{name}'; there are {', '.join(known)}")

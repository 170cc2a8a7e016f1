from collections.abc import Mapping

import pytest

from merrow.cli.flags import FlagError, parse_flags
from merrow.cli.serve_flags import SERVE_FLAGS
from merrow.cli.serve_settings import ServeCommand, build_serve_command
from merrow.settings import HostPolicy, LocalCacheSettings, RateLimitSettings, RedisCacheSettings, SettingsError


def command(*arguments: str, environment: Mapping[str, str] | None = None) -> ServeCommand:
    return build_serve_command(parse_flags(arguments, SERVE_FLAGS), environment=environment)


class TestCache:
    def test_there_is_none_unless_asked_for(self):
        assert command().settings.cache is None
        assert command("--response-cache-byte-size=0").settings.cache is None

    def test_the_local_cache(self):
        assert command("--cache-config=local,size=1048576").settings.cache == LocalCacheSettings(1048576)

    def test_the_flag_of_former_days(self):
        old = command("--response-cache-byte-size=5000")

        assert old.settings.cache == LocalCacheSettings(5000)
        assert old.warnings == (
            "'--response-cache-byte-size' has been deprecated! This will default to the 'local' cache implementation "
            "with the provided byte size for its config. Please use '--cache-config' instead. The equivalent "
            "--cache-config CLI args would be: '--cache-config=local,size=5000'",
        )

    def test_the_redis_cache(self):
        settings = {
            "host": "h",
            "port": "1",
            "user": "u",
            "password": "p",
            "db": "2",
            "connect_timeout": "3",
            "socket_timeout": "4",
            "pool_size": "5",
            "max_pending": "6",
            "tls_enabled": "true",
            "cert": "c",
            "key": "k",
            "cacert": "a",
            "cacert_dir": "d",
        }
        redis = command(*(f"--cache-config=redis,{name}={value}" for name, value in settings.items())).settings.cache

        assert redis == RedisCacheSettings("h", 1, "u", "p", 2, 3, 4, 5, 6, True, "c", "k", "a", "d")
        assert "'p'" not in repr(redis)

    def test_credentials_from_the_environment(self):
        variables = {"TRITONCACHE_REDIS_USERNAME": "u", "TRITONCACHE_REDIS_PASSWORD": "p"}
        arguments = ("--cache-config=redis,host=h", "--cache-config=redis,port=1")

        assert command(*arguments, environment=variables).settings.cache == RedisCacheSettings("h", 1, "u", "p")
        given = command(*arguments, "--cache-config=redis,password=other", environment=variables).settings.cache
        assert given == RedisCacheSettings("h", 1, "u", "other")

    def test_a_setting_without_effect_is_named(self):
        arguments = (f"--cache-config=redis,{setting}" for setting in ("host=h", "port=1", "wait_timeout=5"))

        assert command(*arguments).warnings == (
            "--cache-config=redis,wait_timeout has no effect: each look-up has a connection of its own",
        )

    @pytest.mark.parametrize(
        ("arguments", "text"),
        [
            (
                ["--cache-config=local"],
                "No cache specified. --cache-config option format is <cache name>,<setting>=<value>. Got local\n",
            ),
            (
                ["--cache-config=size=1000"],
                "No cache specified. --cache-config option format is <cache name>,<setting>=<value>. Got size=1000\n",
            ),
            (
                ["--cache-config=local,size"],
                "--cache-config option format is '<cache name>,<setting>=<value>'. Got local,size\n",
            ),
            (
                ["--cache-config=local,size=2000", "--cache-config=redis,host=h"],
                "found multiple cache configurations, but only a single cache is currently supported",
            ),
            (
                ["--cache-config=local,size=2000", "--response-cache-byte-size=2000"],
                "Incompatible flags --response-cache-byte-size and --cache-config both provided. Please provide one or "
                "the other.",
            ),
            (["--cache-config=disk,size=2000"], "unable to find a response cache named 'disk'; there are 'local' and"),
            (["--cache-config=local,sise=2000"], "--cache-config=local has no setting 'sise'; there are size"),
            (["--cache-config=local,size=many"], "Invalid option value. Got many"),
            (["--cache-config=redis,port=1"], "Failed to initialize RedisCache: didn't receive a 'host' field."),
            (["--cache-config=redis,host=h"], "Failed to initialize RedisCache: didn't receive a 'port' field."),
        ],
    )
    def test_what_cannot_be_meant_is_refused(self, arguments: list[str], text: str):
        with pytest.raises(FlagError) as refusal:
            command(*arguments)
        assert text in str(refusal.value)

    def test_a_cache_for_nothing_is_refused(self):
        with pytest.raises(SettingsError, match="expects at least 1024 bytes, got 10"):
            command("--cache-config=local,size=10")


class TestRateLimit:
    def test_it_is_off_unless_asked_for(self):
        assert command("--rate-limit=off").settings.rate_limit is None

    def test_of_amounts_of_one_resource_the_largest_counts(self):
        limited = command(
            "--rate-limit=execution_count",
            "--rate-limit-resource=R1:5",
            "--rate-limit-resource=R1:3",
            "--rate-limit-resource=R1:7:1",
        )
        assert limited.settings.rate_limit == RateLimitSettings({("R1", None): 5, ("R1", 1): 7})

    def test_resources_without_the_limiter_have_no_effect(self):
        assert command("--rate-limit-resource=R1:5").warnings == (
            "--rate-limit-resource has no effect without --rate-limit=execution_count",
        )

    @pytest.mark.parametrize("text", ["R1", "R1:1:2:3", ":1"])
    def test_the_format(self, text: str):
        with pytest.raises(FlagError) as refusal:
            command(f"--rate-limit-resource={text}")
        assert (
            "--rate-limit-resource option format is '<resource_name>:<count>:<device>' or '<resource_name>:<count>'. "
            f"Got {text}\n" in str(refusal.value)
        )

    def test_an_amount_is_a_number_that_is_not_negative(self):
        with pytest.raises(FlagError, match=r"Invalid option value\. Got x"):
            command("--rate-limit-resource=R1:x")
        with pytest.raises(SettingsError, match="not negative, got R1:-1"):
            command("--rate-limit=execution_count", "--rate-limit-resource=R1:-1")


class TestHostPolicies:
    def test_nodes_and_cores(self):
        policies = command(
            "--host-policy=a,numa-node=1",
            "--host-policy=b,cpu-cores=2-4",
            "--host-policy=b,numa-node=0",
            "--host-policy=c,cpu-cores=7",
        ).settings.repository.host_policies

        assert policies == {"a": HostPolicy(1), "b": HostPolicy(0, (2, 3, 4)), "c": HostPolicy(None, (7,))}

    @pytest.mark.parametrize(
        ("text", "error"),
        [
            ("a", "--host-policy option format is '<policy name>,<setting>=<value>'. Got a"),
            ("a,numa-node=", "--host-policy option format is '<policy name>,<setting>=<value>'. Got a,numa-node="),
            ("a,gpu=1", "--host-policy has the settings numa-node and cpu-cores, got 'gpu'"),
            ("a,numa-node=-1", "Invalid option value. Got -1"),
            ("a,cpu-cores=4-2", "--host-policy expects cpu-cores=<first>-<last>, got 4-2"),
        ],
    )
    def test_what_cannot_be_meant_is_refused(self, text: str, error: str):
        with pytest.raises(FlagError) as refusal:
            command(f"--host-policy={text}")
        assert error in str(refusal.value)

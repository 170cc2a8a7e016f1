from merrow.places.process.restart import RestartPolicy
from merrow.settings import ProcessSettings

SECOND = 1_000_000_000
SETTINGS = ProcessSettings(
    restart_delay_min_ms=100,
    restart_delay_max_ms=1000,
    crash_loop_death_count=6,
    crash_loop_window_seconds=60,
    crash_loop_retry_seconds=30,
)


def die_at_once(policy, times, now_ns=SECOND):
    delays = []
    for _ in range(times):
        policy.start(now_ns)
        delays.append(policy.die(now_ns))
    return delays


def test_the_delay_doubles_up_to_the_longest():
    policy = RestartPolicy(SETTINGS)

    assert die_at_once(policy, 5) == [100, 200, 400, 800, 1000]
    assert policy.verdict == ""


def test_a_long_life_ends_a_row():
    policy = RestartPolicy(SETTINGS)
    die_at_once(policy, 3)
    policy.start(10 * SECOND)

    assert policy.die(11 * SECOND + 1) == 100


def test_failed_starts_count_as_deaths():
    policy = RestartPolicy(SETTINGS)
    policy.start(1)

    assert [policy.die(SECOND) for _ in range(6)] == [100, 200, 400, 800, 1000, 30_000]


def test_many_deaths_in_short_are_a_crash_loop():
    policy = RestartPolicy(SETTINGS)
    delays = [policy.die(second * SECOND) for second in (1, 2, 3, 4, 5, 6, 40)]

    assert delays[-2:] == [30_000, 30_000]
    assert policy.verdict == "crash loop: its process died 6 times within 5.0 s and is started again only every 30 s"


def test_many_deaths_in_a_long_time_are_none():
    policy = RestartPolicy(SETTINGS)
    for second in range(0, 200, 13):
        policy.start(second * SECOND)
        policy.die((second + 12) * SECOND)

    assert not policy.is_crash_loop


def test_a_crash_loop_is_over_when_a_child_has_lived_for_the_window():
    policy = RestartPolicy(SETTINGS)
    die_at_once(policy, 6)
    policy.start(100 * SECOND)
    assert policy.die(159 * SECOND) == 30_000
    assert policy.is_crash_loop

    policy.start(200 * SECOND)
    assert policy.die(260 * SECOND) == 100
    assert not policy.is_crash_loop
    assert policy.verdict == ""

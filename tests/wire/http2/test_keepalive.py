"""Keepalive by value: times in milliseconds, as the settings have them."""

import pytest

from merrow.settings import KeepaliveSettings
from merrow.wire.http2.keepalive import Keepalive, KeepaliveAction

NOTHING, PING, GIVE_UP = KeepaliveAction.NOTHING, KeepaliveAction.PING, KeepaliveAction.GIVE_UP
SETTINGS = KeepaliveSettings(time_ms=100, timeout_ms=20, min_recv_ping_interval_without_data_ms=50)
MS = 10**6
TWO_HOURS = 2 * 3600 * 1000


def check(keepalive, now, received, has_calls=True, sent=0):
    return keepalive.check(now * MS, received * MS, has_calls, sent)


def test_a_silent_client_is_asked_and_given_up_when_it_does_not_answer():
    keepalive = Keepalive(SETTINGS)

    assert check(keepalive, 99, 0) is NOTHING
    assert check(keepalive, 100, 0) is PING
    assert check(keepalive, 119, 0) is NOTHING
    assert check(keepalive, 120, 0) is GIVE_UP


def test_anything_that_it_says_is_an_answer():
    keepalive = Keepalive(SETTINGS)

    assert check(keepalive, 100, 0) is PING
    assert check(keepalive, 130, 110) is NOTHING
    assert check(keepalive, 209, 110) is NOTHING
    assert check(keepalive, 210, 110) is PING


def test_without_calls_nobody_is_asked_unless_that_is_permitted():
    assert check(Keepalive(SETTINGS), 1000, 0, has_calls=False) is NOTHING
    permitting = KeepaliveSettings(time_ms=100, permit_without_calls=True)
    assert check(Keepalive(permitting), 1000, 0, has_calls=False) is PING


def test_so_many_pings_without_data_and_no_more():
    keepalive = Keepalive(SETTINGS)

    assert check(keepalive, 100, 0) is PING
    assert check(keepalive, 200, 100) is PING
    assert check(keepalive, 300, 200) is NOTHING
    assert check(keepalive, 301, 200, sent=1) is PING

    unlimited = Keepalive(KeepaliveSettings(time_ms=100, max_pings_without_data=0))
    assert [check(unlimited, now, now - 100) for now in range(100, 1100, 100)] == [PING] * 10


@pytest.mark.parametrize(("has_calls", "interval"), [(True, 50), (False, TWO_HOURS)])
def test_a_client_that_asks_too_often_gets_strikes(has_calls, interval):
    keepalive = Keepalive(SETTINGS)

    def receive(now, sent=0):
        return keepalive.receive_ping(now * MS, has_calls, sent)

    assert [receive(0), receive(interval), receive(2 * interval)] == [True] * 3
    assert [receive(2 * interval + 1), receive(2 * interval + 2)] == [True, True]
    assert not receive(2 * interval + 3)


def test_strikes_are_forgotten_when_data_is_sent():
    keepalive = Keepalive(SETTINGS)

    for sent in range(5):
        assert all(keepalive.receive_ping(now * MS, True, sent) for now in range(3))
    assert not keepalive.receive_ping(3 * MS, True, 4)


def test_any_number_of_strikes():
    keepalive = Keepalive(KeepaliveSettings(max_ping_strikes=0))
    assert all(keepalive.receive_ping(now, True, 0) for now in range(100))


def test_permitted_pings_without_calls_have_the_usual_interval():
    keepalive = Keepalive(KeepaliveSettings(permit_without_calls=True, min_recv_ping_interval_without_data_ms=50))
    assert all(keepalive.receive_ping(now * 50 * MS, False, 0) for now in range(20))

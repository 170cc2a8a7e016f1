"""The voice activity example: two streams of speech at once, in a server."""

import numpy as np
import pytest

from examples.voice_activity import client
from examples.voice_activity.repository import fetch_recording, make_repository
from merrow.testing.running_server import RunningServer


def test_each_window_begins_with_the_end_of_the_one_before():
    samples = np.arange(1200, dtype=np.float32)

    first, second = client.windows_of(samples)

    assert first.shape == (1, 576)
    assert first[0, :65].tolist() == [0] * 65
    assert second[0, [0, 64, -1]].tolist() == [448, 512, 1023]


def test_speech_is_told_in_seconds():
    assert client.spoken(np.array([0.1, 0.9, 0.8, 0.2, 0.7])) == [(0.032, 0.096), (0.128, 0.16)]


@pytest.mark.slow
def test_two_streams_keep_their_own_state():
    samples = client.read_recording(fetch_recording())
    silence = np.zeros(client.WINDOW * 30, np.float32)

    with RunningServer(make_repository()) as server:
        answers = client.stream(server.grpc_url, {1: samples, 2: np.concatenate([silence, samples])})

    # "Ever tried. Ever failed. No matter. Try again. Fail again. Fail better."
    assert len(client.spoken(answers[1])) == 6
    # The network remembers the silence a little, so the numbers differ slightly; what is speech does not.
    assert client.spoken(answers[2]) - np.array(0.96) == pytest.approx(np.array(client.spoken(answers[1])), abs=0.04)
    assert answers[2][:30].max() < 0.5

import threading

from merrow.places.stream_window import StreamWindow


def test_what_is_sent_waits_for_room_and_is_never_cut():
    window = StreamWindow(100)
    window.reserve(99)
    # One response may exceed the limit, whatever its size.
    window.reserve(1000)
    went = []
    thread = threading.Thread(target=lambda: (window.reserve(1), went.append(True)))
    thread.start()
    window.release(999)
    thread.join(0.02)
    assert went == []
    window.release(1)
    thread.join(5)
    assert went == [True]


def test_an_open_window_lets_everything_through():
    window = StreamWindow(10)
    window.reserve(10)
    thread = threading.Thread(target=window.reserve, args=(10,))
    thread.start()
    window.open()
    thread.join(5)
    assert not thread.is_alive()
    window.reserve(1000)

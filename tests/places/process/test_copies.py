import asyncio
import threading

import numpy as np

from merrow.places.process.copies import COPY_ON_THREAD_BYTE_SIZE, copy_all, copy_on_thread, take_long


def test_each_is_copied_to_where_it_belongs():
    first, second = np.zeros(3, np.uint8), np.zeros(2, np.uint8)
    copy_all([(first, b"\1\2\3"), (second, memoryview(bytearray(b"\4\5")))])

    assert first.tolist() == [1, 2, 3]
    assert second.tolist() == [4, 5]


def test_a_megabyte_in_all_takes_long():
    half = np.zeros(COPY_ON_THREAD_BYTE_SIZE // 2, np.uint8)

    assert not take_long([])
    assert not take_long([(half, half.data), (half[1:], half[1:].data)])
    assert take_long([(half, half.data), (half, half.data)])


def test_the_loop_is_told_when_a_thread_has_copied():
    async def main():
        target = np.zeros(1_000_000, np.uint8)
        told = asyncio.get_running_loop().create_future()
        copy_on_thread(
            [(target, bytes([7]) * 1_000_000)],
            asyncio.get_running_loop(),
            lambda what: told.set_result((what, threading.get_ident(), int(target.sum()))),
            "copied",
        )
        assert await told == ("copied", threading.get_ident(), 7_000_000)

    asyncio.run(main())

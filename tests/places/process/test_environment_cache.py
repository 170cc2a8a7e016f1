import multiprocessing
import os
from pathlib import Path

import pytest

from merrow.places.process.environment_cache import EnvironmentCache


def fill(folder):
    Path(folder, "file").write_text("content")


def refuse(folder):
    raise AssertionError("it is there already")


@pytest.fixture
def cache(tmp_path):
    cache = EnvironmentCache(str(tmp_path / "cache"))
    yield cache
    cache.close()


def test_an_entry_is_made_once(cache):
    path = cache.get("archive-a", "1", fill)

    assert Path(path, "file").read_text() == "content"
    assert cache.get("archive-a", "1", refuse) == path


def test_an_entry_is_used_again_by_the_next_server(cache, tmp_path):
    path = cache.get("archive-a", "1", fill)
    cache.close()
    other = EnvironmentCache(str(tmp_path / "cache"))

    assert other.get("archive-a", "1", refuse) == path
    other.close()


def test_an_entry_that_could_not_be_made_leaves_nothing_and_is_tried_again(cache, tmp_path):
    def fail(folder):
        fill(folder)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        cache.get("archive-a", "1", fail)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["archive-a-1.lock"]

    assert Path(cache.get("archive-a", "1", fill), "file").exists()


def test_what_a_killed_server_left_unfinished_is_made_anew(cache, tmp_path):
    unfinished = tmp_path / "cache" / "archive-a-1"
    unfinished.mkdir(parents=True)
    (unfinished / "half").touch()
    path = cache.get("archive-a", "1", fill)

    assert os.listdir(path) == ["file"]


def test_older_states_are_removed_when_nobody_uses_them(cache, tmp_path):
    cache.get("archive-a", "1", fill)
    cache.get("archive-b", "1", fill)
    # Still used, by this one.
    cache.get("archive-a", "2", fill)
    assert {path.name for path in (tmp_path / "cache").iterdir() if path.is_dir()} == {
        "archive-a-1", "archive-a-2", "archive-b-1",
    }  # fmt: skip
    cache.close()

    cache.get("archive-a", "3", fill)
    assert {path.name for path in (tmp_path / "cache").iterdir() if path.is_dir()} == {"archive-a-3", "archive-b-1"}
    assert not (tmp_path / "cache" / "archive-a-1.lock").exists()


def race(directory, results):
    made = []
    cache = EnvironmentCache(directory)
    cache.get("archive-a", "1", lambda folder: (fill(folder), made.append(1)))
    results.put(len(made))
    cache.close()


@pytest.mark.slow
def test_servers_that_want_it_at_the_same_time_make_it_once(tmp_path):
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    processes = [context.Process(target=race, args=(str(tmp_path / "cache"), results)) for _ in range(5)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        process.close()
    made = [results.get() for _ in processes]
    results.close()

    assert sorted(made) == [0, 0, 0, 0, 1]

import threading
from itertools import chain

import pytest

from segment_anything_transformers.prediction.look_ahead import in_groups, one_ahead


def counted(made, stop=10, error_at=None):
    for number in range(stop):
        if number == error_at:
            raise KeyError(f"no {number}")
        made.append(number)
        yield number


@pytest.fixture
def new_threads():
    """Says which threads there are that were not there before the test."""
    before = set(threading.enumerate())
    return lambda: set(threading.enumerate()) - before


def test_items_come_in_their_order():
    assert list(one_ahead(range(100))) == [*range(100)]
    assert list(one_ahead([])) == []


def test_nothing_is_made_before_it_is_asked_for():
    made = []
    items = one_ahead(counted(made))
    assert made == []
    items.close()


def test_the_next_item_is_made_while_this_one_is_used_and_no_further_one():
    made, second, third = [], threading.Event(), threading.Event()

    def numbers():
        made.append(threading.current_thread())
        yield 0
        second.set()
        yield 1
        third.set()
        yield 2

    items = one_ahead(numbers())
    assert next(items) == 0
    assert second.wait(10)
    assert not third.wait(0.1)
    assert made != [threading.current_thread()]
    assert list(items) == [1, 2]


def test_an_error_comes_where_its_item_would_have_come(new_threads):
    items = one_ahead(counted([], error_at=2))
    assert [next(items), next(items)] == [0, 1]
    with pytest.raises(KeyError, match="no 2"):
        next(items)
    assert list(items) == []
    assert new_threads() == set()


def test_closing_ends_the_thread(new_threads):
    made = []
    items = one_ahead(counted(made))
    next(items)
    assert len(new_threads()) == 1
    items.close()
    assert new_threads() == set()
    assert made == [0, 1]


@pytest.mark.parametrize(("count", "lengths"), [(0, []), (3, [3]), (7, [3, 3, 1])])
def test_groups(count, lengths):
    groups = list(in_groups(range(count), str, 3))
    assert [len(group) for group in groups] == lengths
    assert [*chain(*groups)] == [str(number) for number in range(count)]


@pytest.mark.parametrize("error_at", [0, 3, 4, 5])
def test_an_error_comes_after_what_was_made_before_it(error_at):
    got = []

    def take_all():
        for group in in_groups(counted([], error_at=error_at), int, 3):
            got.extend(group)

    with pytest.raises(KeyError, match=f"no {error_at}"):
        take_all()
    assert got == [*range(error_at)]


def test_what_is_made_of_an_item_may_fail_too():
    groups = in_groups(["1", "2", "three"], int, 8)
    assert next(groups) == [1, 2]
    with pytest.raises(ValueError, match="three"):
        next(groups)

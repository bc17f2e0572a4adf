"""In which order goals came, whatever order they are made into jobs in."""

from __future__ import annotations

from mirage.action import Imagine

from mirage_ros.goals import Goals


def test_the_order_is_that_of_acceptance():
    goals = Goals(3)
    first, second, third = (Imagine.Goal() for _ in range(3))
    assert all(goals.take(goal) for goal in (first, second, third))
    assert not goals.take(Imagine.Goal())
    assert [goals.order(goal) for goal in (third, first, second)] == [3, 1, 2]


def test_goals_that_were_never_served_leave_the_list():
    goals = Goals(2)
    for _ in range(5):
        assert goals.take(Imagine.Goal())
        goals.give_back()
    last = Imagine.Goal()
    assert goals.take(last)
    assert goals.order(last) == 6

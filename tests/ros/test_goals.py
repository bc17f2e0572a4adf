"""Goals have their turns in the order in which they were accepted, whatever order their threads run in."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
import time

from mirage.action import Imagine

from mirage_ros.goals import TURN, Goals


def test_turns_are_in_the_order_of_acceptance():
    goals, served = Goals(8), []
    accepted = [Imagine.Goal(seed=n) for n in range(8)]
    assert all(goals.take(goal) for goal in accepted)
    assert not goals.take(Imagine.Goal())

    def serve(goal: Imagine.Goal) -> None:
        with goals.turn(goal):
            served.append(goal.seed)

    with ThreadPoolExecutor(8) as pool:
        for goal in reversed(accepted):
            pool.submit(serve, goal)
            time.sleep(0.01)
    assert served == list(range(8))


def test_a_goal_that_is_never_served_is_waited_for_once():
    goals = Goals(3)
    never, late, next_one = (Imagine.Goal() for _ in range(3))
    for goal in (never, late, next_one):
        assert goals.take(goal)
    began = time.monotonic()
    for goal in (late, next_one, never):
        with goals.turn(goal):
            pass
    assert TURN <= time.monotonic() - began < 2 * TURN

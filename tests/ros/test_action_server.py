"""Goals have their turns in the order in which they were accepted, whatever order their threads run in."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
import time

from mirage.action import Imagine
import pytest

from mirage_ros.action_server import TURN, Goals


def serve(goals: Goals, accepted: list, seconds: float = 0.0) -> list[int]:
    """Numbers of the goals in the order of their turns, their threads started the other way round."""
    served, inside = [], []

    def one(goal: Imagine.Goal) -> None:
        with goals.turn(goal):
            inside.append(goal.seed)
            time.sleep(seconds)
            assert inside == [goal.seed]
            inside.clear()
            served.append(goal.seed)

    with ThreadPoolExecutor(len(accepted)) as pool:
        running = []
        for goal in reversed(accepted):
            running.append(pool.submit(one, goal))
            time.sleep(0.01)
        for future in running:
            future.result()
    return served


@pytest.mark.parametrize('seconds', [0.0, 0.3 * TURN])
def test_turns_are_in_the_order_of_acceptance_however_long_they_take(seconds):
    goals = Goals(6)
    accepted = [Imagine.Goal(seed=n) for n in range(6)]
    assert all(goals.take(goal) for goal in accepted)
    assert not goals.take(Imagine.Goal())
    assert serve(goals, accepted, seconds) == list(range(6))
    for goal in accepted:
        goals.give_back(goal)
    assert all(goals.take(Imagine.Goal()) for _ in range(6))


def test_goals_that_never_come_to_their_turn_give_their_room_back():
    goals = Goals(6)
    accepted = [Imagine.Goal(seed=n) for n in range(6)]
    assert all(goals.take(goal) for goal in accepted)
    never, late = accepted[0], accepted[3]
    began = time.monotonic()
    assert serve(goals, [g for g in accepted if g is not never and g is not late]) == [1, 2, 4, 5]
    assert 2 * TURN <= time.monotonic() - began < 3 * TURN
    with goals.turn(late):
        pass
    goals.give_back(late)  # its room was given back before
    assert sum(goals.take(Imagine.Goal()) for _ in range(6)) == 2

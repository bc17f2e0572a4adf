from __future__ import annotations

from dataclasses import replace
import math

from drives import OPTIONS, copy_bag, wall_bag
import numpy as np
import pytest

from mirage_model.data.bag import Bag
from mirage_model.data.config import BagConfig
from mirage_model.data.sources import Layout, Listing, Part
from mirage_model.evaluation.config import ReplayConfig
from mirage_model.evaluation.replay.replay import views
from mirage_model.evaluation.replay.segments import segments_of


def listing(*runs: range) -> Listing:
    parts = [
        Part(name=f'run-{run.start}', scene='s', sequence='s', rows=tuple(run)) for run in runs
    ]
    return Listing(parts=parts, left_out=[])


def plan(config: ReplayConfig, *runs: range, rate: float = 4.0):
    return segments_of(listing(*runs), np.arange(100) / rate, rate, config)


def test_segments_worked_by_hand():
    """At 4 Hz there is a segment every 6 frames, 4 frames long; every third frame and every start
    is observed."""
    config = ReplayConfig(horizon=1.0, stride=1.5, observe_every=0.75)
    segments, left_out = plan(config, range(0, 14))
    assert not left_out
    assert [s.future for s in segments] == [(1, 2, 3, 4), (7, 8, 9, 10)]
    assert [s.observed for s in segments] == [(0,), (0, 3, 6)]


def test_segments_share_observations_without_a_window():
    config = ReplayConfig(horizon=1.0, stride=1.25, observe_every=0.75)
    segments, _ = plan(config, range(0, 40))
    for before, after in zip(segments, segments[1:]):
        assert after.observed[: len(before.observed)] == before.observed
        assert after.observed[-1] == after.future[0] - 1
    windowed, _ = plan(ReplayConfig(**{**vars(config), 'observe': 1.0}), range(0, 40))
    for segment in windowed:
        start = segment.observed[-1]
        assert segment.observed == tuple(
            row for row in segments[segment.index].observed if (start - row) / 4 <= 1.0
        )
    alone, _ = plan(ReplayConfig(**{**vars(config), 'observe': 0.0}), range(0, 40))
    assert all(len(segment.observed) == 1 for segment in alone)


def test_gaps_break_segments_and_keep_the_memory():
    """A part too short for a segment is named, and may be observed all the same."""
    config = ReplayConfig(horizon=1.0, stride=1.0, observe_every=0.25)
    segments, left_out = plan(config, range(0, 3), range(10, 16))
    (segment,) = segments
    assert segment.observed == (0, 1, 2, 10) and segment.future == (11, 12, 13, 14)
    assert left_out == ['run-0: 3 frames without a gap at 4 Hz, a segment needs 5']


def test_wrong_configurations_are_rejected():
    with pytest.raises(ValueError, match='no segment of 1 s: run-0: 4 frames without a gap'):
        plan(ReplayConfig(horizon=1.0), range(0, 4))
    for wrong in ({'horizon': 0.0}, {'stride': math.inf}, {'observe': -1.0}, {'seeds': (1, 1)}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            ReplayConfig(**wrong)


def test_observation_times_are_whole_microseconds(tmp_path):
    """The node's times are whole microseconds, so those of a replay from the file are too."""

    def later(topic, message):
        if topic == '/camera/image':
            stamp = message.header.stamp
            stamp = replace(stamp, nanosec=stamp.nanosec + 300)
            message = replace(message, header=replace(message.header, stamp=stamp))
        return message

    path = copy_bag(wall_bag(tmp_path / 'drive', 5), tmp_path / 'later', later)
    topics = {name: OPTIONS[name] for name in ('image', 'camera_info', 'pose')}
    topics['accept'] = (OPTIONS['accept'],)
    bag = Bag(path, BagConfig(**topics), Layout(least=1))
    assert bag.nanoseconds[2] == 1000_250_000_300 and bag.stamps[2] > 1000.25
    assert [view.time for view in views(bag, [2, 3])] == [1000.25, 1000.375]

"""Errors are counted by their reason and logged at a limited rate."""

from __future__ import annotations

from mirage_ros import throttled_log as limits
from mirage_ros.diagnostics import NodeMetrics
from mirage_ros.throttled_log import OTHERS, PERIOD, REASONS, ThrottledLog, reason_of

BURST = int(limits.BURST)


def test_reason_replaces_names_and_numbers():
    for one, two, reason in (
        (
            "request 'a' rejected: poses[3]: position [nan, 0.0] is not finite",
            "request 'b-7' rejected: poses[12]: position [1e+30, -inf] is not finite",
            'request # rejected: poses#: position # is not finite',
        ),
        (
            'depth rejected: depth is 48x160, the image 96x160: it must be registered to it',
            'depth rejected: depth is 1x2, the image 3x4: it must be registered to it',
            'depth rejected: depth is #, the image #: it must be registered to it',
        ),
        ('time -0.5 s does not fit', 'time nan s does not fit', 'time # s does not fit'),
    ):
        assert reason_of(one) == reason_of(two) == reason


def test_floods_are_counted_and_throttled():
    now, metrics = 0.0, NodeMetrics()
    log = ThrottledLog(metrics, clock=lambda: now)
    said = [log.line(f'image rejected: {i} bytes') for i in range(1000)]
    assert said[:BURST] == [f'image rejected: {i} bytes' for i in range(BURST)]
    assert not any(said[BURST:])
    assert log.line('depth rejected: 3 bytes') == 'depth rejected: 3 bytes'
    now = PERIOD
    more = log.line('image rejected: 7 bytes')
    assert more == f'image rejected: 7 bytes ({1000 - BURST} similar lines were not logged)'
    assert log.line('image rejected: 8 bytes') is None
    now = 3 * PERIOD
    assert log.line('image rejected: 9 bytes').endswith('(1 similar lines were not logged)')
    assert log.line('image rejected: 9 bytes') == 'image rejected: 9 bytes'
    assert metrics.counts == {'image rejected: # bytes': 1004, 'depth rejected: # bytes': 1}


def test_details_are_logged_once():
    log = ThrottledLog(NodeMetrics(), clock=lambda: 0.0)
    assert log.line("goal 'a' failed: boom", 'Traceback') == "goal 'a' failed: boom\nTraceback"
    assert log.line("goal 'b' failed: boom", 'Traceback') == "goal 'b' failed: boom"


def test_number_of_reasons_is_bounded():
    metrics = NodeMetrics()
    log = ThrottledLog(metrics, clock=lambda: 0.0)
    said = [log.line('x' * (1 + i % 100) + chr(97 + i % 26)) for i in range(26 * 100)]
    assert len(metrics.counts) == REASONS + 1 and metrics.counts[OTHERS] > 1000
    assert sum(map(bool, said)) <= (REASONS + 1) * BURST

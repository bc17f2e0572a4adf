"""What is refused is counted by its reason, and said, but not without end."""

from __future__ import annotations

from mirage_ros import throttled_log as limits
from mirage_ros.diagnostics import NodeMetrics
from mirage_ros.throttled_log import OTHERS, PERIOD, REASONS, ThrottledLog, reason_of

BURST = int(limits.BURST)


def test_a_reason_is_what_stays_the_same():
    for one, two, reason in (
        (
            "request 'a' refused: poses[3]: position [nan, 0.0] is not finite",
            "request 'b-7' refused: poses[12]: position [1e+30, -inf] is not finite",
            'request # refused: poses#: position # is not finite',
        ),
        (
            'depth refused: depth is 48x160, the image 96x160: it must be registered to it',
            'depth refused: depth is 1x2, the image 3x4: it must be registered to it',
            'depth refused: depth is #, the image #: it must be registered to it',
        ),
        ('time -0.5 s does not fit', 'time nan s does not fit', 'time # s does not fit'),
    ):
        assert reason_of(one) == reason_of(two) == reason


def test_a_flood_is_counted_and_not_logged():
    now, figures = 0.0, NodeMetrics()
    refusals = ThrottledLog(figures, clock=lambda: now)
    said = [refusals.line(f'image refused: {i} bytes') for i in range(1000)]
    assert said[:BURST] == [f'image refused: {i} bytes' for i in range(BURST)]
    assert not any(said[BURST:])
    assert refusals.line('depth refused: 3 bytes') == 'depth refused: 3 bytes'
    now = PERIOD
    more = refusals.line('image refused: 7 bytes')
    assert more == f'image refused: 7 bytes ({1000 - BURST} more like it were not logged)'
    assert refusals.line('image refused: 8 bytes') is None
    now = 3 * PERIOD
    assert refusals.line('image refused: 9 bytes').endswith('(1 more like it were not logged)')
    assert refusals.line('image refused: 9 bytes') == 'image refused: 9 bytes'
    assert figures.counts == {'image refused: # bytes': 1004, 'depth refused: # bytes': 1}


def test_details_are_said_once():
    refusals = ThrottledLog(NodeMetrics(), clock=lambda: 0.0)
    assert (
        refusals.line("goal 'a' failed: boom", 'Traceback') == "goal 'a' failed: boom\nTraceback"
    )
    assert refusals.line("goal 'b' failed: boom", 'Traceback') == "goal 'b' failed: boom"


def test_reasons_that_are_new_every_time_take_no_memory_and_no_more_lines():
    figures = NodeMetrics()
    refusals = ThrottledLog(figures, clock=lambda: 0.0)
    said = [refusals.line('x' * (1 + i % 100) + chr(97 + i % 26)) for i in range(26 * 100)]
    assert len(figures.counts) == REASONS + 1 and figures.counts[OTHERS] > 1000
    assert sum(map(bool, said)) <= (REASONS + 1) * BURST

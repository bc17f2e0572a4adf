"""Why messages and requests are not served: counted by reason, and logged, but not without end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
import re
import threading
import time

from mirage_ros.diagnostics import NodeMetrics

BURST, PERIOD = 5.0, 5.0
"""Lines that one reason may take at once, and seconds after which it may take one more."""
REASONS = 64
"""That are told apart; what comes beyond them counts as `OTHERS`."""
OTHERS = 'other reasons'
_VARYING = re.compile(
    r"'[^']*'|\[[^\]]*\]|\b\d+x\d+\b|[-+]?\b\d[\d.]*(?:e[-+]?\d+)?|[-+]?\b(?:nan|inf)\b"
)


def reason_of(text: str) -> str:
    """The text without what differs from case to case: names, numbers and lists."""
    return _VARYING.sub('#', ' '.join(text.split()))[:120]


@dataclass
class _Allowance:
    lines: float
    at: float
    unsaid: int = 0


class ThrottledLog:
    """Safe to use from several threads."""

    def __init__(self, figures: NodeMetrics, *, clock: Callable[[], float] = time.monotonic):
        self._figures = figures
        self._clock = clock
        self._lock = threading.Lock()
        self._allowances: dict[str, _Allowance] = {}

    def line(self, text: str, details: str = '') -> str | None:
        """Count what the text is about; return what to log of it, or None where enough was said of its like.

        The details come once, with the first of its like.
        """
        now, reason = self._clock(), reason_of(text)
        with self._lock:
            if reason not in self._allowances and len(self._allowances) >= REASONS:
                reason = OTHERS
            details = '' if reason in self._allowances else details
            allowed = self._allowances.setdefault(reason, _Allowance(BURST, now))
            allowed.lines = min(BURST, allowed.lines + (now - allowed.at) / PERIOD)
            allowed.at = now
            say = allowed.lines >= 1
            unsaid = allowed.unsaid if say else 0
            allowed.lines -= say
            allowed.unsaid = 0 if say else allowed.unsaid + 1
        self._figures.count(reason)
        if not say:
            return None
        if unsaid:
            return f'{text} ({unsaid} more like it were not logged)'
        return f'{text}\n{details}' if details else text

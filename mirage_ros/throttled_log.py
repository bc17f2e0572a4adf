"""Errors counted by their reason, and logged at a limited rate for each reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
import re
import threading
import time

from mirage_model.io import shortened
from mirage_ros.diagnostics import NodeMetrics

BURST, PERIOD = 5.0, 5.0
"""Lines that a reason may log at once, and the time until it may log another [s]."""
REASONS = 64
"""Reasons that are counted separately; the others count as `OTHERS`."""
OTHERS = 'other reasons'
_VARYING = re.compile(
    r"'[^']*'|\[[^\]]*\]|\b\d+x\d+\b|[-+]?\b\d[\d.]*(?:e[-+]?\d+)?|[-+]?\b(?:nan|inf)\b"
)


def reason_of(text: str) -> str:
    """Return an error text with its names, numbers and lists replaced by #."""
    return _VARYING.sub('#', ' '.join(text.split()))[:120]


@dataclass
class _Budget:
    lines: float
    updated: float
    suppressed: int = 0


class ThrottledLog:
    """A token bucket for each reason. Safe to use from several threads."""

    def __init__(self, metrics: NodeMetrics, *, clock: Callable[[], float] = time.monotonic):
        self._metrics = metrics
        self._clock = clock
        self._lock = threading.Lock()
        self._budgets: dict[str, _Budget] = {}

    def line(self, text: str, details: str = '') -> str | None:
        """Count an error and return the line to log, or None if its reason is over its rate.

        ``details`` are added to the first line of a reason.
        """
        text = shortened(text)
        now, reason = self._clock(), reason_of(text)
        with self._lock:
            if reason not in self._budgets and len(self._budgets) >= REASONS:
                reason = OTHERS
            details = '' if reason in self._budgets else details
            budget = self._budgets.setdefault(reason, _Budget(BURST, now))
            budget.lines = min(BURST, budget.lines + (now - budget.updated) / PERIOD)
            budget.updated = now
            allowed = budget.lines >= 1
            suppressed = budget.suppressed if allowed else 0
            budget.lines -= allowed
            budget.suppressed = 0 if allowed else budget.suppressed + 1
        self._metrics.count(reason)
        if not allowed:
            return None
        if suppressed:
            return f'{text} ({suppressed} similar lines were not logged)'
        return f'{text}\n{details}' if details else text

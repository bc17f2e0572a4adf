"""Metrics of the node, and their report on /diagnostics."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
import threading
import time

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
import numpy as np

from mirage_model.interface import LinkStatus, MemoryStats, ModelInfo
from mirage_ros.parameters import NodeParameters

RECENT = 256
"""Number of latest values that medians, percentiles and rates are computed from."""


class NodeMetrics:
    """Latencies of stages, and counts of requests, images and errors.

    Safe to use from several threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._latencies: dict[str, deque[float]] = {}
        self._counts: Counter[str] = Counter()
        self._chunk_frames: deque[tuple[int, float]] = deque(maxlen=RECENT)

    def add_latency(self, stage: str, seconds: float) -> None:
        with self._lock:
            self._latencies.setdefault(stage, deque(maxlen=RECENT)).append(seconds)

    @contextmanager
    def timing(self, stage: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self.add_latency(stage, time.monotonic() - began)

    def add_chunk(self, frames: int, seconds: float, stages: Mapping[str, float]) -> None:
        self.add_latency('chunk', seconds)
        for stage, part in stages.items():
            self.add_latency(f'chunk {stage}', part)
        with self._lock:
            self._chunk_frames.append((frames, seconds))

    def count(self, what: str) -> None:
        with self._lock:
            self._counts[what] += 1

    @property
    def counts(self) -> dict[str, int]:
        with self._lock:
            return dict(sorted(self._counts.items()))

    def latencies(self) -> dict[str, tuple[float, float]]:
        """Return the median and the 95th percentile of each stage [s]."""
        with self._lock:
            recent = {stage: list(values) for stage, values in sorted(self._latencies.items())}
        return {
            stage: tuple(np.percentile(values, (50, 95)).tolist())
            for stage, values in recent.items()
        }

    def frames_per_second(self) -> float:
        """Return the rate of generated frames, or NaN before the first chunk."""
        with self._lock:
            frames = sum(frames for frames, _ in self._chunk_frames)
            seconds = sum(seconds for _, seconds in self._chunk_frames)
        return frames / seconds if seconds else float('nan')


def diagnostics(
    metrics: NodeMetrics,
    parameters: NodeParameters,
    *,
    name: str,
    state: str,
    engine: ModelInfo | None,
    waiting: int,
    stats: MemoryStats | None,
    device_bytes: int,
    silent: Sequence[str] = (),
    link: LinkStatus | None = None,
) -> DiagnosticArray:
    """Return a message with one status, whose level follows the thresholds of the parameters; the
    stamp is not set.

    ``silent`` names the inputs on which nothing comes.
    """
    latencies = metrics.latencies()
    values: dict[str, object] = {'state': state, 'device': parameters.engine_place}
    if engine is not None:
        values |= {'model': engine.model, 'model sha256': engine.sha256}
    for stage, (median, late) in latencies.items():
        values |= {f'{stage} median s': f'{median:.4f}', f'{stage} p95 s': f'{late:.4f}'}
    values['frames per second'] = f'{metrics.frames_per_second():.2f}'
    values['requests waiting'] = waiting
    values['device memory bytes'] = device_bytes
    if stats is not None:
        values |= {'memory points': stats.points, 'memory bytes': stats.nbytes}
    if link is not None:
        values |= {f'link {name}'.replace('_', ' '): value for name, value in vars(link).items()}
    values |= metrics.counts
    values['silent inputs'] = ', '.join(silent) or 'none'
    chunk_seconds = latencies.get('chunk', (0.0, 0.0))[1]
    level, reason = _level(parameters, chunk_seconds, waiting, stats, silent, link)
    status = DiagnosticStatus(
        level=level,
        name=f'{name}: imagination',
        message=reason or state,
        hardware_id=parameters.engine_place,
        values=[KeyValue(key=key, value=str(value)) for key, value in values.items()],
    )
    return DiagnosticArray(status=[status])


def _level(
    parameters: NodeParameters,
    chunk_seconds: float,
    waiting: int,
    stats: MemoryStats | None,
    silent: Sequence[str],
    link: LinkStatus | None,
) -> tuple[bytes, str]:
    points, nbytes = (stats.points, stats.nbytes) if stats else (0, 0)
    over = lambda value, limit: 0 < limit < value  # noqa: E731
    disconnected = link is not None and not link.connected
    problem = link.message if link is not None else ''
    errors = [
        (disconnected, problem),
        (
            over(chunk_seconds, parameters.diagnostics.error_chunk_seconds),
            f'a chunk takes {chunk_seconds:.1f} s',
        ),
        (over(nbytes, parameters.diagnostics.error_bytes), f'the memory takes {nbytes} bytes'),
    ]
    warnings = [
        (bool(problem), problem),
        (
            over(chunk_seconds, parameters.diagnostics.warn_chunk_seconds),
            f'a chunk takes {chunk_seconds:.1f} s',
        ),
        (over(points, parameters.diagnostics.warn_points), f'the memory holds {points} points'),
        (bool(silent), f'nothing comes on {", ".join(silent)}'),
        (waiting >= parameters.limits.queue_size, f'{waiting} requests are waiting'),
    ]
    for level, checks in ((DiagnosticStatus.ERROR, errors), (DiagnosticStatus.WARN, warnings)):
        if reasons := [text for is_over, text in checks if is_over]:
            return level, ', '.join(reasons)
    return DiagnosticStatus.OK, ''

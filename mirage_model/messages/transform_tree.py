"""Timed transforms between frames, as /tf, /tf_static and topics of poses carry them."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
import math
import threading
import time as clock

from jaxtyping import Bool, Float, Float64
import numpy as np

from mirage_model.messages.poses import frame_name, interpolate

MAX_FRAMES = 4096
"""Frames of a tree; a transform of one more is rejected."""
FIXED = 1e-9
"""Largest difference of equal transforms."""
SAME = 1e-6
"""Largest difference of static and moving transforms of one frame."""
SET_BACK = 1.0
"""Seconds by which stamps of a bag may lie out of order before its clock must have been set back.
"""


@dataclass(kw_only=True)
class _Link:
    """Pose of a frame in its parent, with increasing times, or one for all times where static.

    ``parents`` has the newest time of each parent, several where transforms contradict each other;
    ``contradicted`` is whether a static transform differs from moving ones; ``rejected`` are the
    reasons why transforms of this frame were left out; ``fixed`` is whether all transforms are
    equal, as those of a joint that is sent again and again.
    """

    parents: dict[str, float] = field(default_factory=dict)
    static: bool = False
    times: list[float] = field(default_factory=list)
    parent_from_child: list[np.ndarray] = field(default_factory=list)
    rejected: list[str] = field(default_factory=list)
    set_back: bool = False
    fixed: bool = True
    contradicted: bool = False

    @property
    def parent(self) -> str:
        """Return the newest parent."""
        return next(reversed(self.parents))

    def differs(self, matrix: np.ndarray) -> bool:
        """Return whether a transform differs from one that is there."""
        return any((np.abs(matrix - other) > SAME).any() for other in self.parent_from_child)

    def insert(self, time: float, matrix: np.ndarray, *, static: bool) -> None:
        """Insert a transform in the order of time; of two with one stamp the first stays.

        A static transform takes the place of all others; moving ones of a static frame are left
        out.
        """
        if static != self.static:
            self.contradicted |= self.differs(matrix)
        if static:
            self.static, self.times, self.parent_from_child = True, [time], [matrix]
        if self.static:
            return
        if self.fixed and self.times:
            self.fixed = bool((np.abs(matrix - self.parent_from_child[0]) < FIXED).all())
        place = bisect_left(self.times, time)
        if place == len(self.times) or self.times[place] != time:
            self.times.insert(place, time)
            self.parent_from_child.insert(place, matrix)

    def at(
        self, times: Float[np.ndarray, 'n']
    ) -> tuple[Float64[np.ndarray, 'n 4 4'], Float64[np.ndarray, 'n']]:
        """Return parent_from_child at ``times`` and the seconds to the further of the two stamps
        around each.

        The gap is 0 at a stamp, for static transforms and between equal ones, and infinite before
        the first and after the last stamp.
        """
        if self.static:
            return np.tile(self.parent_from_child[0], (len(times), 1, 1)), np.zeros(len(times))
        last = len(self.times) - 1
        after = [min(bisect_left(self.times, time), last) for time in times.tolist()]
        before = [
            i if self.times[i] <= time else max(i - 1, 0) for i, time in zip(after, times.tolist())
        ]
        begin, end = (np.array([self.times[i] for i in part]) for part in (before, after))
        outside = (times < begin) | (times > end)
        gap = np.zeros(len(times)) if self.fixed else np.maximum(times - begin, end - times)
        gap = np.where(outside, np.inf, gap)
        fraction = np.clip((times - begin) / np.where(end > begin, end - begin, 1.0), 0.0, 1.0)
        first, second = (
            np.stack([self.parent_from_child[i] for i in part]) for part in (before, after)
        )
        return interpolate(first, second, fraction), gap


class TransformTree:
    """Transforms between frames: add them, then look up where one frame was in another.

    A path through a frame with two parents is rejected, and a static transform goes before moving
    ones of its frame. A live tree keeps the last ``max_age`` seconds, and a clock that is set back
    by more than that begins anew. The tree of a bag keeps all: what follows a clock that was set
    back by more than `SET_BACK` is rejected. Safe to use from several threads.
    """

    def __init__(self, *, max_age: float | None = None) -> None:
        """Create an empty tree; ``max_age`` None is the tree of a bag."""
        self._max_age = max_age
        self._links: dict[str, _Link] = {}
        self._changed = threading.Condition()

    def add(
        self,
        parent: str,
        child: str,
        time: float,
        parent_from_child: Float[np.ndarray, '4 4'],
        *,
        static: bool,
    ) -> None:
        """Add a transform; one with a stamp that is already there is ignored.

        Raises:
            ValueError: The frame would be one more than `MAX_FRAMES`.
        """
        with self._changed:
            link = self._link(child)
            if link.times and not static and not link.static:
                back = link.times[-1] - time
                if self._max_age is not None and back > self._max_age:
                    link = self._links[child] = _Link()
                elif self._max_age is None:
                    link.set_back |= back > SET_BACK
            if link.set_back:
                link.rejected.append(f'time goes backwards, {time:.6f} after {link.times[-1]:.6f}')
                return
            changed = static and link.static and link.differs(parent_from_child)
            if changed and self._max_age is None:
                link.rejected.append(f'a later static transform, of {time:.6f}, differs')
            newest = max(link.parents.pop(parent, -math.inf), math.inf if static else time)
            link.parents[parent] = newest
            link.insert(time, parent_from_child, static=static)
            if self._max_age is not None and not link.static:
                begin = link.times[-1] - self._max_age
                old = bisect_left(link.times, begin)
                del link.times[:old], link.parent_from_child[:old]
                link.parents = {p: last for p, last in link.parents.items() if last >= begin}
            self._changed.notify_all()

    def reject(self, parent: str, child: str, reason: str) -> None:
        """Note why a transform of a bag was left out, for the message of a lookup that lacks
        it.
        """
        with self._changed:
            if child in self._links or len(self._links) < MAX_FRAMES:
                link = self._link(child)
                link.parents.setdefault(parent, -math.inf)
                link.rejected.append(reason)

    def remove(self, child: str) -> None:
        """Delete all transforms of a frame."""
        with self._changed:
            self._links.pop(child, None)

    def clear_moving(self) -> None:
        """Delete all transforms that are not static."""
        with self._changed:
            self._links = {child: link for child, link in self._links.items() if link.static}
            for link in self._links.values():
                link.contradicted = False
                link.parents = {p: last for p, last in link.parents.items() if last == math.inf}

    def lookup(
        self,
        target: str,
        source: str,
        time: float | None,
        *,
        wait: float = 0.0,
        max_gap: float = math.inf,
    ) -> Float64[np.ndarray, '4 4']:
        """Return target_from_source at a time.

        Args:
            time: Seconds; None is the newest time at which every transform between the two is
            known.
            wait: Seconds to wait for transforms that are not there yet.
            max_gap: Largest time from the stamp of each transform before to ``time``, and from
                there to the one after it [s].

        Raises:
            ValueError: No transforms join the frames, or one of them is not known at that time.
                Nothing is extrapolated.
        """
        target, source = frame_name(target), frame_name(source)
        deadline = clock.monotonic() + wait
        with self._changed:
            while True:
                try:
                    return self._lookup(target, source, time, max_gap)
                except ValueError:
                    left = deadline - clock.monotonic()
                    if left <= 0:
                        raise
                    self._changed.wait(left)

    def lookup_all(
        self, target: str, source: str, times: Float[np.ndarray, 'n'], *, max_gap: float
    ) -> tuple[Float64[np.ndarray, 'n 4 4'], Bool[np.ndarray, 'n'], list[str]]:
        """Return target_from_source at many times, which of them are valid, and the transforms
        that were left out.

        Every link is interpolated at the times asked for. A pose is valid where every link has a
        stamp at most ``max_gap`` seconds before it and another as long after it.

        Raises:
            ValueError: No transforms join the frames, they contradict each other, or there is no
                time at which all are known.
        """
        target, source = frame_name(target), frame_name(source)
        up, down = self._path(target, source)
        links = {frame: self._links[frame] for frame in up + down}
        _check_known_together(links)
        target_from_source, gaps = self._compose(up, down, times)
        rejected = [
            f"{len(link.rejected)} transforms of '{frame}' are left out, the first: "
            f'{link.rejected[0]}'
            for frame, link in links.items()
            if link.rejected
        ]
        valid = np.max([np.zeros(len(times)), *gaps.values()], axis=0) <= max_gap
        return target_from_source, valid, rejected

    def span(self, target: str, source: str) -> tuple[float, float]:
        """Return the first and the last time at which every moving transform between two frames is
        known; all times where none moves."""
        up, down = self._path(frame_name(target), frame_name(source))
        moving = [self._links[f] for f in up + down if not self._links[f].static]
        first = max((link.times[0] for link in moving), default=-math.inf)
        return first, min((link.times[-1] for link in moving), default=math.inf)

    def _lookup(self, target: str, source: str, time: float | None, max_gap: float) -> np.ndarray:
        up, down = self._path(target, source)
        moving = [self._links[f] for f in up + down if not self._links[f].static]
        if time is None:
            time = min((link.times[-1] for link in moving), default=0.0)
        target_from_source, gaps = self._compose(up, down, np.array([time]))
        for frame, gap in gaps.items():
            if not np.isfinite(gap[0]):
                link = self._links[frame]
                raise ValueError(
                    f"no transform between '{target}' and '{source}' at {time:.3f}: '{frame}' in "
                    f"'{link.parent}' is known from {link.times[0]:.3f} to "
                    f'{link.times[-1]:.3f}'
                )
            if gap[0] > max_gap:
                link = self._links[frame]
                after = bisect_left(link.times, time)
                raise ValueError(
                    f"no transform between '{target}' and '{source}' at {time:.3f}: '{frame}' in "
                    f"'{link.parent}' was sent at {link.times[after - 1]:.3f} and then at "
                    f'{link.times[after]:.3f}, a gap over {max_gap:g} s'
                )
        return target_from_source[0]

    def _compose(
        self, up: list[str], down: list[str], times: Float[np.ndarray, 'n']
    ) -> tuple[Float64[np.ndarray, 'n 4 4'], dict[str, Float64[np.ndarray, 'n']]]:
        """Return target_from_source at ``times`` and the gaps of `_Link.at` by frame."""
        chains, gaps = [], {}
        for part in (up, down):
            ancestor_from_frame = np.tile(np.eye(4), (len(times), 1, 1))
            for frame in reversed(part):
                parent_from_child, gaps[frame] = self._links[frame].at(times)
                ancestor_from_frame = ancestor_from_frame @ parent_from_child
            chains.append(ancestor_from_frame)
        ancestor_from_source, ancestor_from_target = chains
        return np.linalg.inv(ancestor_from_target) @ ancestor_from_source, gaps

    def _link(self, child: str) -> _Link:
        if child not in self._links and len(self._links) >= MAX_FRAMES:
            raise ValueError(f"frame '{child}' would be one more than {MAX_FRAMES}")
        return self._links.setdefault(child, _Link())

    def _path(self, target: str, source: str) -> tuple[list[str], list[str]]:
        """Return the frames below the common ancestor, from ``source`` up and from ``target``
        up.
        """
        up, down = self._to_root(source), self._to_root(target)
        ancestor = next((frame for frame in up if frame in down), None)
        path = up + down
        if ancestor is not None:
            up, down = up[: up.index(ancestor)], down[: down.index(ancestor)]
            path = up + down
        for frame in path:
            link = self._links.get(frame, _Link())
            if len(link.parents) > 1:
                named = ' and '.join(map(repr, sorted(link.parents)))
                raise ValueError(
                    f"'{frame}' has the parents {named}: each frame may have one, so one of the "
                    'publishers must end'
                )
            if link.contradicted:
                raise ValueError(
                    f"'{frame}' in '{link.parent}' is sent as a static and as a moving transform, "
                    'which differ: one of the publishers must end'
                )
        if ancestor is None:
            frames = {*self._links, *(p for link in self._links.values() for p in link.parents)}
            left_out = [
                other.rejected[0] for f in path if (other := self._links.get(f)) and other.rejected
            ]
            raise ValueError(
                f"no transforms join '{source}' to '{target}'; the frames that are known: "
                f'{", ".join(sorted(frames)) or "none"}'
                f'{"; left out: " if left_out else ""}{"; ".join(left_out[:3])}'
            )
        return up, down

    def _to_root(self, frame: str) -> list[str]:
        chain = [frame]
        while chain[-1] in self._links and len(chain) <= len(self._links):
            chain.append(self._links[chain[-1]].parent)
        return chain


def _check_known_together(links: dict[str, _Link]) -> None:
    """Raise ValueError where no time has all links of a path."""
    for frame, link in links.items():
        if not link.times:
            raise ValueError(f"'{frame}' has no transform that can be used: {link.rejected[0]}")
    moving = {frame: link for frame, link in links.items() if not link.static}
    first = max((link.times[0] for link in moving.values()), default=-math.inf)
    if first > min((link.times[-1] for link in moving.values()), default=math.inf):
        spans = (
            f"'{frame}' from {link.times[0]:.6f} to {link.times[-1]:.6f}"
            for frame, link in moving.items()
        )
        raise ValueError(f'transforms are never known at one time: {", ".join(spans)}')

"""Poses of a camera from a tree of transforms, as /tf and /tf_static carry it."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field

from jaxtyping import Float
import numpy as np

from mirage_model.camera import resample_trajectory

SET_BACK = 1.0
"""Seconds by which stamps may lie out of order before the clock must have been set back."""


@dataclass(kw_only=True)
class Edge:
    """Where a frame is in its parent: at ``times`` in seconds, or always, with one matrix, where static.

    ``parents`` has more than one name where transforms contradict each other; ``refused`` are the reasons why
    others of them were not taken, ``back`` is whether time was set back.
    """

    parents: list[str]
    static: bool
    times: list[float] = field(default_factory=list)
    parent_from_child: list[np.ndarray] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    back: bool = False


class Tree:
    """Add transforms in the order that they were sent in; then ask for the poses of a frame in one above it."""

    def __init__(self) -> None:
        self._edges: dict[str, Edge] = {}

    def add(
        self,
        parent: str,
        child: str,
        time: float,
        parent_from_child: Float[np.ndarray, '4 4'],
        *,
        static: bool,
    ) -> None:
        """A transform that is sent twice counts once; those after time was set back are refused."""
        edge = self._edge(parent, child, static)
        if static:
            edge.static, edge.times, edge.parent_from_child = True, [time], [parent_from_child]
        if edge.static:
            return
        edge.back |= bool(edge.times) and time < edge.times[-1] - SET_BACK
        if edge.back:
            edge.refused.append(f'time goes backwards, {time:.6f} after {edge.times[-1]:.6f}')
            return
        place = bisect_left(edge.times, time)
        if place == len(edge.times) or edge.times[place] != time:
            edge.times.insert(place, time)
            edge.parent_from_child.insert(place, parent_from_child)

    def refuse(self, parent: str, child: str, reason: str, *, static: bool) -> None:
        """A transform that is none."""
        self._edge(parent, child, static).refused.append(reason)

    def poses(
        self, world: str, frame: str
    ) -> tuple[Float[np.ndarray, 'k'], Float[np.ndarray, 'k 4 4'], list[str]]:
        """Times and world_from_frame, as often as the transform that is sent least, and what was refused between.

        Raises ValueError where no transforms lead from ``frame`` up to ``world``, or never all at one time.
        """
        path, at = {}, frame
        while at != world:
            if at not in self._edges or at in path:
                known = sorted(
                    {*self._edges, *(p for e in self._edges.values() for p in e.parents)}
                )
                raise ValueError(
                    f'no transforms lead from {frame!r} up to {world!r}: {at!r} has no parent; '
                    f'there are the frames {", ".join(known)}'
                )
            edge = path[at] = self._edges[at]
            if len(edge.parents) > 1:
                raise ValueError(f'{at!r} has the parents {" and ".join(map(repr, edge.parents))}')
            if not edge.times:
                raise ValueError(f'{at!r} has no transform that can be used: {edge.refused[0]}')
            at = edge.parents[0]
        moving = {child: edge for child, edge in path.items() if not edge.static}
        if not moving:
            raise ValueError(f'only static transforms lead from {frame!r} up to {world!r}')
        times = np.array(min((edge.times for edge in moving.values()), key=len))
        first = max(edge.times[0] for edge in moving.values())
        last = min(edge.times[-1] for edge in moving.values())
        times = times[(times >= first) & (times <= last)]
        if not len(times):
            spans = (
                f'{c!r} from {e.times[0]:.6f} to {e.times[-1]:.6f}' for c, e in moving.items()
            )
            raise ValueError(f'transforms are never known at one time: {", ".join(spans)}')
        world_from_frame = np.tile(np.eye(4), (len(times), 1, 1))
        for edge in reversed(path.values()):
            matrices = np.stack(edge.parent_from_child)
            world_from_frame = world_from_frame @ (
                matrices
                if edge.static
                else resample_trajectory(matrices, np.array(edge.times), times)
            )
        broken = [
            f'{len(edge.refused)} transforms of {child!r} are left out, the first: {edge.refused[0]}'
            for child, edge in path.items()
            if edge.refused
        ]
        return times, world_from_frame, broken

    def _edge(self, parent: str, child: str, static: bool) -> Edge:
        edge = self._edges.setdefault(child, Edge(parents=[parent], static=static))
        if parent not in edge.parents:
            edge.parents.append(parent)
        return edge

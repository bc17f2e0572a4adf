"""Poses of a camera from a tree of transforms, as /tf and /tf_static carry it."""

from __future__ import annotations

from dataclasses import dataclass, field

from jaxtyping import Float
import numpy as np

from mirage_model.camera import resample_trajectory


@dataclass(kw_only=True)
class Edge:
    """Where a frame is in its ``parent``: at ``times`` in seconds, or always, with one matrix, where static."""

    parent: str
    static: bool
    times: list[float] = field(default_factory=list)
    parent_from_child: list[np.ndarray] = field(default_factory=list)


class Tree:
    """Add transforms in the order of their times; then ask for the poses of a frame in one above it."""

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
        """A transform that is sent twice counts once. Raises ValueError for time that goes backwards."""
        edge = self._edges.setdefault(child, Edge(parent=parent, static=static))
        if edge.parent != parent:
            raise ValueError(f'{child!r} has two parents, {edge.parent!r} and {parent!r}')
        if static:
            edge.times, edge.parent_from_child = [time], [parent_from_child]
        elif not edge.times or time > edge.times[-1]:
            edge.times.append(time)
            edge.parent_from_child.append(parent_from_child)
        elif time < edge.times[-1]:
            raise ValueError(
                f'time goes backwards: {child!r} at {time:.6f} comes after {edge.times[-1]:.6f}'
            )

    def poses(
        self, world: str, frame: str
    ) -> tuple[Float[np.ndarray, 'k'], Float[np.ndarray, 'k 4 4']]:
        """Times and world_from_frame, as often as the transform that is sent least.

        Raises ValueError where no transforms lead from ``frame`` up to ``world``.
        """
        path, at = [], frame
        while at != world:
            if at not in self._edges or len(path) > len(self._edges):
                known = sorted(set(self._edges) | {e.parent for e in self._edges.values()})
                raise ValueError(
                    f'no transforms lead from {frame!r} up to {world!r}: {at!r} has no parent; '
                    f'there are the frames {", ".join(known)}'
                )
            path.append(self._edges[at])
            at = self._edges[at].parent
        moving = [edge for edge in path if not edge.static]
        if not moving:
            raise ValueError(f'only static transforms lead from {frame!r} up to {world!r}')
        times = np.array(min((edge.times for edge in moving), key=len))
        first, last = max(e.times[0] for e in moving), min(e.times[-1] for e in moving)
        times = times[(times >= first) & (times <= last)]
        world_from_frame = np.tile(np.eye(4), (len(times), 1, 1))
        for edge in reversed(path):
            matrices = np.stack(edge.parent_from_child)
            world_from_frame = world_from_frame @ (
                matrices
                if edge.static
                else resample_trajectory(matrices, np.array(edge.times), times)
            )
        return times, world_from_frame

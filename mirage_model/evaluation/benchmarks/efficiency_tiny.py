"""Rollouts of a model with every memory in turn, run whole and timed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from mirage_model.clip import Clip
from mirage_model.evaluation.benchmarks.efficiency_rows import Clock, Row, TimedMemory
from mirage_model.evaluation.rollout_quality import imagine
from mirage_model.memory.latent import MemoryConfig
from mirage_model.memory.registry import MEMORIES, create_memory
from mirage_model.model.checkpoint import Model


def rows_of_a_rollout(model: Model, clip: Clip, name: str, run: int) -> list[Row]:
    """Imagine along a clip's cameras from its first frame; a row for every chunk."""
    clock = Clock()
    config = MemoryConfig(channels=model.codec.channels, splat_size=model.config.splat_size)
    memory = TimedMemory(create_memory(name, config, model.codec), clock)
    imagine(model, clip, memory, seed=0)
    rows = []
    for chunk, lap in enumerate(memory.laps):
        counted = lap.seconds
        rows.append(
            Row(
                memory=name,
                run=run,
                chunk=chunk + 1,
                frames=model.new_frames,
                read=counted['read'],
                masks=counted['masks'],
                write=counted['write'],
                rest=counted['whole'] - counted['read'] - counted['masks'] - counted['write'],
                nbytes=lap.nbytes,
                index_nbytes=lap.index_nbytes,
                cells=lap.cells,
            )
        )
    return rows


def run_whole(model: Model, clip: Clip, *, run: int) -> Iterator[list[Row]]:
    """All memories, one after another, compiled before."""
    short = replace(clip, **{
        name: getattr(clip, name)[: model.config.chunk_frames]
        for name in ('frames', 'cameras', 'depth', 'sky', 'moving')
    })  # fmt: skip
    for name in MEMORIES:
        rows_of_a_rollout(model, short, name, 0)
    for name in MEMORIES:
        yield rows_of_a_rollout(model, clip, name, run)

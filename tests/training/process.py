"""Train as one of several processes on CPUs: ``process.py DATA OUT``.

Each kind of run is done twice, unbroken and stopped on the way, as copies of the model and
sharded. Accelerate shards over GPUs alone: here its state is told that these processes are to be
sharded, so that what runs is what runs there, accelerate's own preparation by torch's
`fully_shard`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
import sys

from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType
from small_data import small_objective
import torch
from torch.distributed.tensor import DTensor

from mirage_model.training.config import ContextConfig, TrainerConfig, WorldModelConfig
from mirage_model.training.trainer import DivergedError, fit, sharding

CONTEXT = ContextConfig(imagined=0.5, imagined_from=1, imagined_steps=2)
MODEL = WorldModelConfig(
    stage='adapter', batch=1, lora_rank=4, sampler_steps=2, validation_clips=1, context=CONTEXT
)
TRAINER = TrainerConfig(
    steps=6, warmup_steps=2, log_every=3, validate_every=6, checkpoint_every=2, learning_rate=1e-2
)


def train(data: Path, run: Path, config: TrainerConfig, *, fail_at: int | None = None) -> None:
    """Train, and print why it ended; ``fail_at`` names a step whose loss is NaN on the second
    process."""
    objective = small_objective(data, MODEL)
    step = objective.step

    def failing(module, rng, generator, at: int):
        result = step(module, rng, generator, at)
        fails = at == fail_at and torch.distributed.get_rank() == 1
        return replace(result, loss=result.loss * float('nan')) if fails else result

    objective.step = failing
    try:
        fit(objective, config, run, full_config={})
    except DivergedError as error:
        print(f'{run.name}: {error}', flush=True)
    parameters = list(objective.module.parameters())
    shards = [p for p in parameters if isinstance(p, DTensor)]
    print(f'{run.name}: {len(shards)} of {len(parameters)} sharded', flush=True)


def main() -> None:
    data, out = map(Path, sys.argv[1:])
    state = Accelerator(cpu=True).state
    for kind, config in (('copies', TRAINER), ('shards', replace(TRAINER, fsdp=True))):
        if config.fsdp:
            try:
                train(data, out / 'rejected', config)
            except ValueError as error:
                print(f'rejected: {error}', flush=True)
            # every new state is told the type by this one
            PartialState().distributed_type = DistributedType.FSDP
            state.fsdp_plugin = sharding(config)
        train(data, out / f'{kind}-unbroken', config)
        train(data, out / f'{kind}-stopped', config, fail_at=5)
        train(data, out / f'{kind}-stopped', config)
        train(data, out / f'{kind}-half', config, fail_at=5)


if __name__ == '__main__':
    main()

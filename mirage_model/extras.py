"""The optional packages: which extra of the distribution brings a module that is missing."""

from __future__ import annotations

EXTRAS = {
    'torch': 'engine',
    'diffusers': 'engine',
    'transformers': 'engine',
    'peft': 'engine',
    'accelerate': 'engine',
    'safetensors': 'engine',
    'numba': 'engine',
    'tqdm': 'engine',
    'rosbags': 'replay',
    'mcap': 'replay',
    'pyarrow': 'replay',
    'torchmetrics': 'replay',
    'kornia': 'replay',
    'matplotlib': 'replay',
    'pytorch_optimizer': 'train',
    'OpenEXR': 'train',
    'tensorboard': 'train',
    'vizdoom': 'worlds',
    'omg': 'worlds',
    'mujoco': 'worlds',
    'rerun': 'viewer',
    'ray': 'pool',
}
"""Modules that no plain installation has; pyproject.toml lists the packages of each extra."""


def explain(error: ImportError) -> str:
    """Return the error's text, or what to install where it comes from a missing extra."""
    cause: BaseException | None = error
    while cause is not None:
        name = (getattr(cause, 'name', None) or '').split('.')[0]
        if isinstance(cause, ModuleNotFoundError) and name in EXTRAS:
            return f"needs {name}: pip install 'mirage[{EXTRAS[name]}]'"
        cause = cause.__cause__
    return str(error)

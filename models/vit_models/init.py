"""Seeded random weights, for trying, timing and testing a network that has no checkpoint."""

from __future__ import annotations

import zlib

import numpy as np
from torch import nn

from vit_models.vit import LayerScale, RotaryEmbedding, ViT

SPREAD = np.float32(0.02 * 12**0.5)  # a uniform distribution this wide has a standard deviation of 0.02


def init_weights(model: ViT, seed: int = 0) -> ViT:
    """Fill every parameter from `seed`, in place, and return the model.

    Uniform around 0 with standard deviation 0.02, LayerNorm scales and LayerScale 1 + such a draw; rotary frequencies are DINOv3's.
    Where we leave the paper's code:
    it starts biases, class token and head at or near zero, and a network like that cannot show a bias that
    an export has lost. Each parameter has a stream of its own (seed and name), so its values depend neither on
    the other parameters nor on their order.
    """
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(prefix=path, recurse=False):
            values = parameter.detach().numpy()
            rng = np.random.Generator(np.random.SFC64([seed, zlib.crc32(name.encode())]))
            rng.random(dtype=np.float32, out=values)
            values -= np.float32(0.5)
            values *= SPREAD
            if isinstance(module, LayerScale) or (isinstance(module, nn.LayerNorm) and name.endswith(".weight")):
                values += np.float32(1)
            elif isinstance(module, RotaryEmbedding):
                values[:] = 2 * np.pi * 100.0 ** -(np.arange(len(values)) / len(values))
    return model.eval()

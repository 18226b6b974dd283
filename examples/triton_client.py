"""Ask a Triton server what is in images, over HTTP or gRPC: pip install "tritonclient[http,grpc]", and nothing of ours.

Example: python examples/triton_client.py vit_image photo.jpg other.png --protocol grpc --address 127.0.0.1:8001
"""

import argparse
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np


def ask(protocol: str, address: str, model: str, images: Sequence[bytes], outputs: Sequence[str], top: int = 0) -> dict[str, Any]:
    """The outputs for encoded images, a row an image; with `top` those of classes as "score:number:label" of the best ones.

    `protocol` is "http" or "grpc". Raises: tritonclient's InferenceServerException with what the server says.
    """
    triton = import_module(f"tritonclient.{protocol}")  # both have the same classes
    tensor = triton.InferInput("image", [len(images), 1], "BYTES")
    tensor.set_data_from_numpy(np.array(images, dtype=object).reshape(-1, 1))
    wanted = [triton.InferRequestedOutput(name, class_count=top) for name in outputs]
    client = triton.InferenceServerClient(address)
    try:
        answer = client.infer(model, [tensor], outputs=wanted)
        return {name: answer.as_numpy(name) for name in outputs}
    finally:
        client.close()


def main() -> None:
    """Print the likeliest classes of each image."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="the model that takes images: NAME_image")
    parser.add_argument("images", nargs="+", type=Path)
    parser.add_argument("--protocol", choices=["http", "grpc"], default="http")
    parser.add_argument("--address", default="127.0.0.1:8000", help="Triton's gRPC is at port 8001")
    parser.add_argument("--topk", type=int, default=5)
    args = parser.parse_args()
    images = [path.read_bytes() for path in args.images]
    found = ask(args.protocol, args.address, args.model, images, ["probabilities"], args.topk)["probabilities"]
    for path, row in zip(args.images, found, strict=True):
        print(path)
        for entry in row:
            probability, number, *label = entry.decode().split(":", 2)
            print(f"  {float(probability):.3f}  {label[0] if label else number}")


if __name__ == "__main__":
    main()

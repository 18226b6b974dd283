"""What an installation for NVIDIA GPUs downloads and takes on the disk: the wheels of the extra `gpu` that its `cpu` has not.

Downloads them (1.6 GB) into a folder that it removes again, and reads their tables of contents. Needs no GPU.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from common import machine, markdown

ASKED = "onnxruntime-gpu[cuda,cudnn]"
OURS = ("onnxruntime_gpu", "nvidia_")  # the rest comes with the CPU's wheel too


def wheels(asked: str, folder: Path) -> list[tuple[str, str, int, int]]:
    """Name, version, bytes to download and bytes on the disk of each wheel of NVIDIA's and onnxruntime's, the largest first."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary", ":all:", "--no-cache-dir", "--dest", str(folder), asked]
    subprocess.run(command, check=True, stdout=sys.stderr)
    found = []
    for path in folder.glob("*.whl"):
        if path.name.startswith(OURS):
            name, version = path.name.split("-")[:2]
            with zipfile.ZipFile(path) as wheel:
                found.append((name.replace("_", "-"), version, path.stat().st_size, sum(item.file_size for item in wheel.infolist())))
    return sorted(found, key=lambda wheel: -wheel[2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("asked", nargs="?", default=ASKED, help="what pip is asked for")
    with tempfile.TemporaryDirectory() as folder:
        found = wheels(parser.parse_args().asked, Path(folder))
    total = ("together", "", sum(wheel[2] for wheel in found), sum(wheel[3] for wheel in found))
    rows = [[f"{name} {version}".strip(), f"{load / 1e6:.0f} MB", f"{disk / 1e6:.0f} MB"] for name, version, load, disk in [*found, total]]
    facts = machine(["pip"])
    print(markdown([["what comes", "to download", "on the disk"], *rows]))
    print(f"\n{facts['system']}, Python {facts['python']}, {facts['date']}")


if __name__ == "__main__":
    main()

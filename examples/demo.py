"""`make demo`: two networks become verified ONNX files, and one of them classifies real images without torch.

Every step is a command that a user could type. Afterwards demo/ holds vit.onnx, digits.onnx, contact_sheet.png and index.html.
"""

from __future__ import annotations

import argparse
import base64
import html
import io
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from PIL import Image

HERE = Path(__file__).resolve().parent
BIN = Path(sys.executable).parent

STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --soft: #656d76; --line: #d0d7de; --good: #1a7f37; --bad: #cf222e; --paper: #fff; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --soft: #8b949e; --line: #30363d; --good: #3fb950; --bad: #f85149; --paper: #0d1117; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 68rem; margin: 2rem auto; padding: 0 1rem; }
h1 { margin-bottom: 0; } h2 { margin-top: 2.5rem; } p.soft, caption { color: var(--soft); }
table { border-collapse: collapse; margin: 1rem 0; } th, td { padding: .3rem .9rem; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child, td:first-child { text-align: left; } caption { text-align: left; padding-bottom: .4rem; }
.good { color: var(--good); font-weight: 600; } .bad { color: var(--bad); font-weight: 600; } img { max-width: 100%; }
code { background: color-mix(in srgb, var(--soft) 15%, transparent); padding: .1rem .3rem; border-radius: 4px; }
"""


def main() -> None:
    """Run the demo; --out is the folder for what it writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo"))
    parser.add_argument("--arch", default="ViT-B/16", help="the architecture with random weights")
    parser.add_argument("--every", default="1", metavar="N", help="classify every N-th of the 1,000 held-out digits")
    args = parser.parse_args()
    out: Path = args.out
    start = time.perf_counter()
    (out / "held_out").mkdir(parents=True, exist_ok=True)
    for file in (out / "held_out").glob("*.png"):
        file.unlink()
    vit, digits = out / "vit.onnx", out / "digits.onnx"

    exported = [
        run_json("vit-export", "--arch", args.arch, "--out", vit, "--force"),
        run_json("vit-export", "--arch", "digits", "--out", digits, "--force"),
    ]
    run(sys.executable, HERE.parent / "scripts" / "digits_data.py", out / "held_out", "--every", args.every)
    run(sys.executable, HERE / "classify_digits.py", digits, out / "held_out", "--out", out)
    parity = [run_json("vit-parity", vit), run_json("vit-parity", digits)]
    predictions = json.loads((out / "predictions.json").read_text())
    (out / "index.html").write_text(page(exported, parity, predictions, out / "contact_sheet.png"), encoding="utf-8")
    print(f"done in {time.perf_counter() - start:.0f} s; look at {out / 'index.html'} and {out / 'contact_sheet.png'}")


def run(command: str | Path, *arguments: str | Path) -> str:
    """Run a command as a user would and give back what it printed; its progress goes to the terminal."""
    program = BIN / command if (BIN / command).exists() else Path(command)
    print(f"$ {Path(command).name} {' '.join(map(str, arguments))}", flush=True)
    done = subprocess.run([program, *map(str, arguments)], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{Path(command).name} ended with exit code {done.returncode}\n{done.stdout}")
    if "--json" not in arguments:
        print(done.stdout, end="")
    return done.stdout


def run_json(command: str, *arguments: str | Path) -> dict[str, Any]:
    """Run one of our commands with --json and print its verdict in a line."""
    document: dict[str, Any] = json.loads(run(command, *arguments, "--json"))
    if command == "vit-export":
        checks = document["parity"]["checks"]
        worst = max(check["rms_floors"] for check in checks)
        print(
            f"  {document['size'] / 1e6:.1f} MB, {document['nodes_before']} -> {document['nodes_after']} nodes, error at most {worst:.2f}x "
            f"PyTorch's own float32 error, {document['seconds']:.1f} s, peak memory {document['peak_memory'] / 1e6:.0f} MB"
        )
    else:
        print(f"  {'passed' if document['passed'] else 'FAILED'}")
    return document


def page(exported: list[dict[str, Any]], parity: list[dict[str, Any]], predictions: dict[str, Any], sheet: Path) -> str:
    """One HTML page that needs no other file."""
    verdict = all(document["passed"] for document in parity)
    parts = [
        f"<h1>vit-deploy demo: {mark(verdict, 'both files proven', 'a file failed')}</h1>",
        f"<p class=soft>{html.escape(tools(exported[0]))}</p>",
        "<h2>Exported</h2>",
        exports_table(exported),
        "<h2>Handwritten digits, classified by the runtime without torch</h2>",
        f"<p>{predictions['right']} of {predictions['images']} held-out images right (<b>{predictions['accuracy']:.2%}</b>), on {predictions['provider']}.</p>",
        f'<img alt="contact sheet of predictions" src="{data_uri(sheet.read_bytes())}">',
        "<h2>Parity</h2>",
        "<p>Each file was run on golden images, which any machine makes again from a seed, and held against what PyTorch computed in float64. "
        "One <i>floor</i> is PyTorch's own float32 error.</p>",
        f'<img alt="golden images" src="{data_uri(golden_png(exported[0]))}">',
        *(parity_table(model) for document in parity for model in document["models"]),
    ]
    return f"<!doctype html><html lang=en><meta charset=utf-8><title>vit-deploy demo</title><style>{STYLE}</style>{''.join(parts)}</html>"


def exports_table(exported: list[dict[str, Any]]) -> str:
    """A row a file."""
    rows = "".join(
        f"<tr><td>{html.escape(e['manifest']['model']['arch'])}<td>{e['manifest']['model']['parameters'] / 1e6:.1f} M<td>{e['size'] / 1e6:.1f} MB"
        f"<td>{e['nodes_before']} → {e['nodes_after']}<td>{e['manifest']['build']['opset']}<td>{e['seconds']:.1f} s<td>{e['peak_memory'] / 1e6:.0f} MB"
        for e in exported
    )
    return f"<table><tr><th>network<th>parameters<th>file<th>nodes<th>opset<th>time<th>peak memory</tr>{rows}</table>"


def parity_table(model: dict[str, Any]) -> str:
    """A file's verdict and checks."""
    report = model["reports"][0]
    rows = "".join(
        f"<tr><td>{c['output']}<td>{c['inputs']}<td>{c['batch_size']}<td>{c['rms']:.2e}<td>{c['rms_floors']:.2f}<td>{c['max_floors']:.2f}<td>{mark(c['passed'], 'passed', 'FAILED')}"
        for c in report["checks"]
    )
    limits = report["limits"]
    head = "<tr><th>output<th>images<th>batch<th>relative rms error<th>in floors<th>largest, in floors<th></tr>"
    caption = f"limits: {limits['rms']:g} floors for the root mean square, {limits['max']:g} for the largest"
    name = html.escape(Path(model["model"]).name)
    return f"<h3>{name}: {mark(model['passed'], 'passed', 'FAILED')}</h3><table><caption>{caption}</caption>{head}{rows}</table>"


def golden_png(exported: dict[str, Any]) -> bytes:
    """The golden images of a file, side by side."""
    from vit_runtime.golden import golden_images

    manifest = exported["manifest"]
    images = golden_images(manifest["golden"]["seed"], manifest["golden"]["images"], *manifest["input"]["shape"][2:])
    sheet = Image.new("RGB", (sum(image.shape[1] + 8 for image in images), images.shape[1]), "white")
    for index, image in enumerate(images):
        sheet.paste(Image.fromarray(image), (index * (image.shape[1] + 8), 0))
    buffer = io.BytesIO()
    sheet.save(buffer, "png")
    return buffer.getvalue()


def data_uri(png: bytes) -> str:
    """A picture inside the page."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def mark(good: bool, yes: str, no: str) -> str:
    """A coloured verdict."""
    return f"<span class={'good' if good else 'bad'}>{yes if good else no}</span>"


def tools(exported: dict[str, Any]) -> str:
    """The versions that made the files."""
    return ", ".join(f"{name} {version}" for name, version in exported["manifest"]["build"]["tools"].items() if version)


if __name__ == "__main__":
    main()

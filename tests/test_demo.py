"""`make demo`, with a smaller network in place of ViT-B/16 and 100 of the 1,000 digits: it must work, and its page must be right."""

import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from helpers import assert_mentions
from PIL import Image

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder that the demo wrote, and what it printed."""
    out = tmp_path_factory.mktemp("demo") / "out"
    options = ("--out", str(out), "--arch", "ViT-Ti/16", "--every", "10")
    result = subprocess.run([sys.executable, str(ROOT / "examples" / "demo.py"), *options], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return out, result.stdout


@pytest.fixture(scope="module")
def predictions(demo: tuple[Path, str]) -> dict[str, Any]:
    """The predictions that the demo wrote."""
    return json.loads((demo[0] / "predictions.json").read_text())


def test_both_files_are_there_and_the_demo_says_so(demo: tuple[Path, str], predictions: dict[str, Any]):
    out, printed = demo
    assert (out / "vit.onnx").stat().st_size > 20e6
    assert (out / "digits.onnx").exists()
    assert_mentions(printed, "vit.onnx", "digits.onnx", predictions["right"], predictions["images"])


def test_the_predictions_are_those_of_a_trained_network(predictions: dict[str, Any]):
    assert predictions["images"] == 100
    assert predictions["accuracy"] > 0.94  # chance is 0.1; tests/models/test_digits.py has the exact limit, on all 1,000 digits
    right = sum(row["label"] == row["truth"] for row in predictions["predictions"])
    assert right == predictions["right"]


def test_the_contact_sheet_is_a_picture_with_pictures_on_it(demo: tuple[Path, str]):
    with Image.open(demo[0] / "contact_sheet.png") as sheet:
        colors = sheet.convert("RGB").getcolors(1 << 20)
    assert colors is not None
    assert len(colors) > 100


def test_the_page_is_whole_and_needs_no_other_file(demo: tuple[Path, str], predictions: dict[str, Any]):
    page = Page()
    page.feed((demo[0] / "index.html").read_text())
    assert page.images
    assert all(source.startswith("data:image/png;base64,") for source in page.images)
    assert not page.links
    assert set(page.verdicts) == {"good"}  # of both files and of every check
    assert_mentions(page.text, "vit.onnx", "digits.onnx", predictions["right"], predictions["images"])


class Page(HTMLParser):
    """Collects the images, what would need another file, the classes of the verdicts, and the text."""

    def __init__(self) -> None:
        super().__init__()
        self.images, self.links, self.verdicts, self.text = list[str](), list[str](), list[str](), ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if tag == "img":
            self.images.append(values["src"])
        if tag in ("link", "script") or values.get("href", "").startswith("http"):
            self.links.append(tag)
        if tag == "span":
            self.verdicts.append(values["class"])

    def handle_data(self, data: str) -> None:
        self.text += f"{data}\n"

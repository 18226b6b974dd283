"""`make demo`, with a smaller network in place of ViT-B/16: the first thing that a newcomer sees must work and tell the truth."""

import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The folder that the demo wrote, and what it printed."""
    out = tmp_path_factory.mktemp("demo") / "out"
    command = [sys.executable, str(ROOT / "examples" / "demo.py"), "--out", str(out), "--arch", "ViT-Ti/16"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return out, done.stdout


def test_both_files_are_there_and_the_demo_says_so(demo):
    out, printed = demo
    assert (out / "vit.onnx").stat().st_size > 20e6
    assert (out / "digits.onnx").exists()
    assert printed.count("passed") == 2
    assert "without torch" in printed


def test_the_predictions_are_those_of_a_trained_network(demo):
    result = json.loads((demo[0] / "predictions.json").read_text())
    assert result["images"] == 1000
    assert result["accuracy"] > 0.97  # chance is 0.1; tests/models/test_digits.py holds the exact bar
    right = sum(row["label"] == row["truth"] for row in result["predictions"])
    assert right == result["right"]


def test_the_contact_sheet_is_a_picture_with_pictures_on_it(demo):
    with Image.open(demo[0] / "contact_sheet.png") as sheet:
        colours = sheet.convert("RGB").getcolors(1 << 20)
    assert colours is not None
    assert len(colours) > 100


def test_the_page_is_whole_and_needs_no_other_file(demo):
    page = Page()
    page.feed((demo[0] / "index.html").read_text())
    assert page.images
    assert all(source.startswith("data:image/png;base64,") for source in page.images)
    assert not page.links
    assert "both files proven" in page.text
    assert "FAILED" not in page.text


class Page(HTMLParser):
    """Collects what the test asks about."""

    def __init__(self):
        super().__init__()
        self.images, self.links, self.text = [], [], ""

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if tag == "img":
            self.images.append(values["src"])
        if tag in ("link", "script") or values.get("href", "").startswith("http"):
            self.links.append(tag)

    def handle_data(self, data):
        self.text += data

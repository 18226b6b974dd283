"""The page of a parity check: whole by itself, the verdict first, and nothing that a file or a label is called becomes markup."""

import base64
import io
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from helpers import assert_mentions, run, with_array, with_manifest
from PIL import Image

import vit_runtime as vit
from vit_runtime.golden import golden_images
from vit_runtime.parity import Result, check_record
from vit_runtime.parity.page import TOP, WORST, page, portrait

EMPTY = {"meta", "img", "rect", "br"}


class Outline(HTMLParser):
    """The tags, which have to be closed in their order, the text, and the attributes that point somewhere."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.tags, self.text, self.targets = list[str](), Counter[str](), list[str](), list[str]()
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self.targets += [value for name, value in attrs if name in ("src", "href")]
        self.open += [tag] if tag not in EMPTY else []

    def handle_startendtag(self, tag, attrs):
        self.tags[tag] += 1

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def written(tiny_model: Path, tmp_path_factory) -> str:
    """Of a file and a copy with a changed weight."""
    folder = tmp_path_factory.mktemp("page")
    bad = with_array(tiny_model, folder, "blocks.1.mlp.fc1.weight", lambda values: values.__imul__(1.5))
    out = folder / "parity.html"
    assert run("vit-parity", tiny_model, bad, "--batch-sizes", "1,2", "--locate", "--html", out).exit_code == 1
    return out.read_text(encoding="utf-8")


def test_it_is_one_whole_page_that_points_nowhere(written):
    outline = Outline(written)
    assert outline.tags["h1"] == 1
    assert outline.tags["table"] == 4  # all, and one for each report
    assert all(target.startswith("data:image/png;base64,") for target in outline.targets)
    assert not re.search(r"<script|@import|url\(|https?:", written)
    assert "prefers-color-scheme: dark" in written


def test_the_verdict_stands_first_then_where_they_part_then_the_figures(written):
    body = written.split("<body>")[1]
    places = [body.index(part) for part in ("FAILED", "<b>blocks.1</b>", "<svg")] + [body.rindex("<table>"), body.index("<img")]
    assert places == sorted(places)
    headings = [" ".join(Outline(heading).text) for heading in re.findall("<h2>.*?</h2>", body) if 'class="good"' in heading]
    assert len(headings) == 1
    assert_mentions(headings[0], "tiny.onnx", "cpu")
    assert re.search('<h1>[^\n]*class="bad"[^\n]*</h1>', body)


def test_the_worst_images_are_shown_with_their_likeliest_classes(tiny_model: Path, tmp_path: Path):
    bad = vit.load(with_array(tiny_model, tmp_path, "head.bias", lambda bias: bias.__setitem__(3, 50)), "cpu")
    found = portrait(bad)
    golden = bad.manifest.golden
    assert golden is not None
    assert (len(found.errors), len(found.worst)) == (golden.images, WORST)
    assert [shown.error for shown in found.worst] == sorted(found.errors, reverse=True)[:WORST]
    images = golden_images(golden.seed, golden.images, 32, 32)
    for shown in found.worst:
        pixels = np.asarray(Image.open(io.BytesIO(shown.png)))
        assert any(np.array_equal(pixels, image) for image in images)
        assert (len(shown.expected), len(shown.actual)) == (TOP, TOP)
        assert shown.actual[0][0] == "dog"  # the class whose bias it is
        assert shown.expected != shown.actual


def test_an_honest_file_shows_how_little_it_is_off(tiny_model: Path):
    model = vit.load(tiny_model, "cpu")
    found = portrait(model)
    assert max(found.errors) < 1e-5
    for shown in found.worst:
        assert [name for name, _ in shown.expected] == [name for name, _ in shown.actual]
        expected, actual = ([probability for _, probability in classes] for classes in (shown.expected, shown.actual))
        assert expected == pytest.approx(actual, abs=1e-4)  # float32 against float64: four digits are enough to see what is shown
    text = page([Result("tiny.onnx", (check_record(model.run, model.manifest, "cpu", (1,)),))], [found], [])
    assert 'class="bad"' not in text
    Outline(text)


def test_nan_is_shown_as_what_it_is(tiny_model: Path, tmp_path: Path):
    bad = with_array(tiny_model, tmp_path, "head.bias", lambda bias: bias.__setitem__(3, np.nan))
    out = tmp_path / "parity.html"
    assert run("vit-parity", tiny_model, bad, "--batch-sizes", "1", "--locate", "--html", out).exit_code == 1
    text = out.read_text()
    Outline(text)
    assert "<b>head</b>" in text
    captions = re.findall("<figcaption>.*?</figcaption>", text)
    assert len(captions) == 2 * WORST
    assert sum(re.search(r"\bnan\b", caption) is not None for caption in captions) == WORST


def test_labels_and_names_are_text(tiny_model: Path, tmp_path: Path):
    nasty = "<script>alert('&')</script>"
    folder = tmp_path / "<b>"
    folder.mkdir()
    path = with_manifest(tiny_model, folder, lambda document: document.update(labels=[f"{nasty}{number}" for number in range(10)]))
    out = tmp_path / "parity.html"
    assert run("vit-parity", path, "--batch-sizes", "1", "--html", out).exit_code == 0
    outline = Outline(out.read_text())
    assert "script" not in outline.tags
    assert nasty in "".join(outline.text)
    assert "<b>" in "".join(outline.text)


def test_reduced_precision_and_files_without_classes_have_a_page_too(tiny_int8: Path, tiny_embedder: Path, tmp_path: Path):
    for path, figure in ((tiny_int8, "cosine"), (tiny_embedder, "rms")):
        out = tmp_path / f"{path.stem}.html"
        assert run("vit-parity", path, "--batch-sizes", "1", "--html", out).exit_code == 0
        outline = Outline(out.read_text())
        assert_mentions(" ".join(outline.text), figure)
        assert outline.tags["img"] == WORST
        for target in outline.targets:
            Image.open(io.BytesIO(base64.b64decode(target.split(",")[1]))).verify()

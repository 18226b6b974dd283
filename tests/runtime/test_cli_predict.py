"""vit-predict: classes and embeddings of image files."""

import csv
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers import assert_mentions, document_of, failed, run, run_apart

import vit_runtime as vit
from vit_runtime.manifest import Manifest


def test_predict_names_the_likeliest_classes_of_each_image(tiny_model: Path, images: Path):
    result = run("vit-predict", tiny_model, images / "a.png", images / "b.jpg", "--topk", "2", "--provider", "cpu")
    assert result.exit_code == 0
    expected = vit.load(tiny_model, "cpu").predict([images / "a.png", images / "b.jpg"])
    lines = [
        f"{path}: " + ", ".join(f"{label.name} {label.probability:.1%}" for label in found.top(2))
        for path, found in zip((images / "a.png", images / "b.jpg"), expected, strict=True)
    ]
    assert result.stdout.splitlines() == lines


def test_predict_takes_folders_and_patterns_and_each_image_once(tiny_model: Path, images: Path):
    found = document_of(run("vit-predict", tiny_model, images, images / "*.png", images / "a.png", "--json"))
    names = [str(Path(entry["image"]).relative_to(images)) for entry in found["images"]]
    assert names == ["a.png", "b.jpg", "below/e.png", "c.PNG", "d.bmp"]
    found = document_of(run("vit-predict", tiny_model, images / "**" / "*.png", "--json"))
    assert sorted(Path(entry["image"]).name for entry in found["images"]) == ["a.png", "e.png"]


def test_predict_gives_the_same_as_data(tiny_model: Path, images: Path, tiny_manifest: Manifest):
    document = document_of(run("vit-predict", tiny_model, images, "--json", "--topk", "10", "--provider", "cpu", "--threads", "1"))
    assert (document["model"], document["provider"], document["threads"]) == (str(tiny_model), "cpu", 1)
    assert document["seconds"] > 0
    for entry in document["images"]:
        assert tiny_manifest.labels is not None
        probabilities = [found["probability"] for found in entry["predictions"]]
        assert sum(probabilities) == pytest.approx(1)
        assert probabilities == sorted(probabilities, reverse=True)
        assert all(found["label"] == tiny_manifest.labels[found["index"]] for found in entry["predictions"])


@pytest.mark.parametrize("batch_size", ["1", "2", "100"])
def test_predict_gives_the_same_classes_at_any_batch_size(batch_size: str, tiny_model: Path, images: Path):
    plain, batched = (run("vit-predict", tiny_model, images, *more).stdout for more in ((), ("--batch-size", batch_size)))
    assert plain == batched


def test_predict_writes_a_csv(tiny_model: Path, images: Path, tmp_path: Path):
    path = tmp_path / "out.csv"
    document = document_of(run("vit-predict", tiny_model, images, "--topk", "3", "--csv", path, "--json"))
    with path.open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == ["path", "rank", "label", "probability"]
    assert rows == [
        [entry["image"], str(rank), found["label"], f"{found['probability']:.6f}"]
        for entry in document["images"]
        for rank, found in enumerate(entry["predictions"], start=1)
    ]
    assert len(rows) == 15


def test_predict_writes_embeddings(tiny_model: Path, images: Path, tmp_path: Path):
    path = tmp_path / "out.npz"
    assert run("vit-predict", tiny_model, images, "--embeddings", path, "--batch-size", "2").exit_code == 0
    with np.load(path, allow_pickle=False) as found:
        paths, embeddings = found["paths"], found["embeddings"]
        assert set(found) == {"paths", "embeddings"}
    assert embeddings.dtype == np.float32
    assert [Path(name).name for name in paths] == ["a.png", "b.jpg", "e.png", "c.PNG", "d.bmp"]
    expected = vit.load(tiny_model, "cpu").embed([Path(name) for name in paths], batch_size=2)
    np.testing.assert_array_equal(embeddings, expected)


def test_predict_writes_the_file_under_the_name_that_was_given(tiny_model: Path, images: Path, tmp_path: Path):
    assert run("vit-predict", tiny_model, images, "--embeddings", tmp_path / "vectors.bin").exit_code == 0
    assert [path.name for path in tmp_path.glob("vectors*")] == ["vectors.bin"]


def test_a_file_without_logits_is_for_embeddings(tiny_embedder: Path, images: Path, tmp_path: Path):
    message = failed(run("vit-predict", tiny_embedder, images), 2)
    assert_mentions(message, tiny_embedder, "embedding", "logits", "--embeddings out.npz")
    document = document_of(run("vit-predict", tiny_embedder, images, "--embeddings", tmp_path / "out.npz", "--json"))
    assert [entry["predictions"] for entry in document["images"]] == [[]] * 5
    assert np.load(tmp_path / "out.npz")["embeddings"].shape == (5, 32)
    message = failed(run("vit-predict", tiny_embedder, images, "--embeddings", tmp_path / "out.npz", "--csv", tmp_path / "out.csv"), 2)
    assert_mentions(message, tiny_embedder, "logits", "--csv")


def test_a_file_whose_head_projects_has_no_classes_and_is_for_embeddings(tiny_clip: Path, images: Path, tmp_path: Path):
    message = failed(run("vit-predict", tiny_clip, images), 2)
    assert_mentions(message, tiny_clip, "classes", "projects", "--embeddings")
    message = failed(run("vit-predict", tiny_clip, images, "--embeddings", tmp_path / "out.npz", "--csv", tmp_path / "out.csv"), 2)
    assert_mentions(message, tiny_clip, "classes", "--csv")
    assert not list(tmp_path.glob("out.*"))
    result = run("vit-predict", tiny_clip, images, "--embeddings", tmp_path / "out.npz")
    assert (result.exit_code, result.stdout) == (0, "")
    with np.load(tmp_path / "out.npz") as found:
        expected = vit.load(tiny_clip, "cpu").embed([Path(name) for name in found["paths"]])
        np.testing.assert_array_equal(found["embeddings"], expected)
        assert found["embeddings"].shape == (5, 24)
    document = document_of(run("vit-predict", tiny_clip, images, "--embeddings", tmp_path / "out.npz", "--json"))
    assert [entry["predictions"] for entry in document["images"]] == [[]] * 5


def test_a_file_without_an_embedding_has_none_to_write(tiny_projected: Path, images: Path, tmp_path: Path):
    message = failed(run("vit-predict", tiny_projected, images, "--embeddings", tmp_path / "out.npz"), 2)
    assert_mentions(message, tiny_projected, "logits, tokens", "--outputs embedding")


@pytest.mark.parametrize("option", ["--csv", "--embeddings"])
def test_a_place_that_cannot_be_written_is_told_before_and_a_full_disk_after(option: str, tiny_model: Path, images: Path, tmp_path: Path):
    message = failed(run("vit-predict", tiny_model, images, option, tmp_path / "no" / "out"), 2)
    assert_mentions(message, option, tmp_path / "no" / "out", f"mkdir -p {tmp_path / 'no'}")
    if Path("/dev/full").exists():
        result = run("vit-predict", tiny_model, images, option, "/dev/full")
        assert result.exit_code == 4
        assert_mentions(result.stderr, "error", "/dev/full", "No space left on device")


def test_images_that_are_missing_or_broken_are_told_apart(tiny_model: Path, images: Path, tmp_path: Path):
    assert_mentions(failed(run("vit-predict", tiny_model, images / "no.png"), 2), images / "no.png", "path")
    assert_mentions(failed(run("vit-predict", tiny_model, images / "*.tiff"), 2), images / "*.tiff", "pattern")
    (tmp_path / "empty").mkdir()
    assert_mentions(failed(run("vit-predict", tiny_model, tmp_path / "empty"), 2), tmp_path / "empty", "folder", ".jpg .jpeg")
    assert_mentions(failed(run("vit-predict", tiny_model, images / "notes.txt"), 3), images / "notes.txt", "JPEG, PNG")
    cut = images / "cut.png"
    cut.write_bytes((images / "a.png").read_bytes()[:500])
    assert_mentions(failed(run("vit-predict", tiny_model, cut), 3), cut, "truncated")  # Pillow's own word


def test_a_broken_image_is_named_and_the_others_go_on(tiny_model: Path, images: Path, tmp_path: Path):
    (images / "cut.png").write_bytes((images / "a.png").read_bytes()[:500])
    npz, table = tmp_path / "out.npz", tmp_path / "out.csv"
    rows = document_of(run("vit-predict", tiny_model, images, "--json", "--embeddings", npz, "--csv", table), 3)["images"]
    broken = [row for row in rows if "error" in row]
    assert [Path(row["image"]).name for row in broken] == ["cut.png"]
    assert all(row["predictions"] for row in rows if row not in broken)
    kept = [row["image"] for row in rows if row not in broken]
    assert list(np.load(npz)["paths"]) == kept
    assert "cut.png" not in table.read_text()


def test_a_network_that_gives_nan_is_an_error_and_no_prediction(edited: Callable[[float], Path], images: Path):
    path = edited(float("nan"))
    assert_mentions(failed(run("vit-predict", path, images), 1), "NaN", "Inf")
    assert document_of(run("vit-predict", path, images, "--json"), 1)["exit_code"] == 1


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a file name be any bytes")
def test_file_names_that_are_no_text_are_no_trouble(tiny_model: Path, images: Path, tmp_path: Path):
    name = os.fsdecode(b"caf\xe9.png")
    shutil.copy(images / "a.png", images / name)
    result = run_apart("vit-predict", tiny_model, images, "--csv", tmp_path / "out.csv", LC_ALL="C.UTF-8")
    assert (result.returncode, result.stderr) == (0, "")
    assert "caf\ufffd.png: " in result.stdout
    assert b"caf\xe9.png," in (tmp_path / "out.csv").read_bytes()
    found = json.loads(run_apart("vit-predict", tiny_model, images / name, "--json", LC_ALL="C.UTF-8").stdout)
    assert found["images"][0]["image"] == str(images / name)

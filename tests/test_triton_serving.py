"""NVIDIA's own server reads the repositories that vit-export writes, and serves vit_runtime; its own clients ask it.

Everything stays on 127.0.0.1. The onnxruntime backend is not in the server's wheel, so of the model of pixel values the server checks the
configuration and no more.
"""

import io
import os
import shutil
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from digits_data import load_digits
from export_cache import ExportCache
from helpers import assert_mentions, with_manifest
from PIL import Image
from triton_server import Server, Triton, UnavailableError, install, serve

import vit_runtime as vit
from vit_exporter import digits_source, random_source, write_triton
from vit_runtime.manifest import Limits

ROOT = Path(__file__).parent.parent
CLIENT = ROOT / "examples" / "triton_client.py"

pytestmark = pytest.mark.slow

MODELS = ("digits", "vit-ti")
# A script beside the client: it asks for groups of images, as many at once as there are workers, and writes the outputs or the errors.
ASK = """
import json, sys
from concurrent.futures import ThreadPoolExecutor
import numpy as np
from triton_client import ask
from tritonclient.utils import InferenceServerException

protocol, address, model, task, out, workers, *outputs = sys.argv[1:]
with np.load(task) as file:
    groups = [[image.tobytes() for image in (file[f"{g}_{i}"] for i in range(n))] for g, n in enumerate(file["sizes"])]

def one(images):
    try:
        return ask(protocol, address, model, images, outputs)
    except InferenceServerException as error:
        return {"status": str(error.status()), "message": error.message()}

with ThreadPoolExecutor(int(workers)) as pool:
    answers = list(pool.map(one, groups))
np.savez(out, **{f"{g}_{name}": value for g, answer in enumerate(answers) for name, value in answer.items()})
"""


@pytest.fixture(scope="module")
def triton() -> Triton:
    try:
        return install()
    except UnavailableError as error:
        pytest.skip(f"no Triton server: {error}")


@pytest.fixture(scope="module")
def files(exports: ExportCache) -> dict[str, Path]:
    """The trained digits, and a ViT-Ti with random weights."""
    sources = {"digits": digits_source(), "vit-ti": random_source("ViT-Ti/16", 0)}
    return {name: exports.export(source, f"{name}.onnx").out for name, source in sources.items()}


@pytest.fixture(scope="module")
def server(triton, files, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    for path in files.values():
        write_triton(path, folder / "models")
    with serve(triton, folder / "models", [f"{name}_image" for name in MODELS], folder / "server.log") as running:
        yield running


@pytest.fixture(scope="module")
def pictures() -> dict[str, list[bytes]]:
    """What each network is for: held-out digits as PNG, and images of many sizes as JPEG."""
    images, _ = load_digits("heldout")
    numbers = np.random.default_rng(0)
    noise = [numbers.integers(0, 256, (200 + 11 * i, 300 - 7 * i, 3), np.uint8) for i in range(16)]
    return {"digits": [encoded(image, "PNG") for image in images[:16]], "vit-ti": [encoded(image, "JPEG") for image in noise]}


def encoded(pixels: np.ndarray, kind: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def asked(
    server: Server,
    protocol: str,
    model: str,
    groups: Sequence[Sequence[bytes]],
    folder: Path,
    workers: int = 1,
    outputs: Sequence[str] = ("logits",),
) -> list[dict[str, np.ndarray]]:
    """The answers of the server to requests of so many images each."""
    arrays: dict[str, Any] = {
        f"{g}_{i}": np.frombuffer(image, np.uint8) for g, images in enumerate(groups) for i, image in enumerate(images)
    }
    np.savez(folder / "task.npz", sizes=[len(images) for images in groups], **arrays)
    address = server.http if protocol == "http" else server.grpc
    shutil.copy(CLIENT, folder)
    (folder / "ask.py").write_text(ASK)
    server.run(folder / "ask.py", protocol, address, f"{model}_image", folder / "task.npz", folder / "answers.npz", workers, *outputs)
    answers: list[dict[str, np.ndarray]] = [{} for _ in groups]
    with np.load(folder / "answers.npz") as file:
        for name in file.files:
            group, _, output = name.partition("_")
            answers[int(group)][output] = file[name]
    return answers


def executions(server: Server, model: str) -> dict[int, int]:
    """How often the model ran on a batch of each size, the warm-up included."""
    (stats,) = server.get(f"v2/models/{model}_image/stats")["model_stats"]
    return {batch["batch_size"]: batch["compute_infer"]["count"] for batch in stats["batch_stats"]}


# --- the configuration ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "precision"), [("portable", "fp32"), ("cpu", "int8"), ("openvino", "bf16"), ("cuda", "fp16"), ("tensorrt", "fp16")]
)
def test_the_server_accepts_every_configuration_but_for_what_this_machine_lacks(triton, tiny_model, tmp_path, target, precision):
    path = with_manifest(tiny_model, tmp_path, lambda document: document["build"].update(target=target, precision=precision))
    written = write_triton(path, tmp_path / "models")
    lacks = {written.models[0]: "unable to find backend library for backend 'onnxruntime'"}
    if written.kind == "KIND_GPU":
        # Where there is a GPU, the environment still has no onnxruntime for it.
        lacks[written.models[1]] = f"no GPUs are available|'{target}'"
    if target == "openvino":
        lacks[written.models[1]] = r"vit-deploy\[openvino\]"
    for model in written.models:
        if model in lacks:
            with pytest.raises(RuntimeError, match=lacks[model]), serve(triton, tmp_path / "models", [model], tmp_path / "log"):
                pass
        else:
            with serve(triton, tmp_path / "models", [model], tmp_path / "log") as running:
                assert running.get(f"v2/models/{model}/config")["max_batch_size"] == written.max_batch_size


@pytest.mark.parametrize(
    ("right", "wrong", "says"),
    [
        ("max_batch_size", "max_batch_sise", 'no field named "max_batch_sise"'),
        ("KIND_CPU", "KIND_TPU", "KIND_TPU"),
        ("dims: [1] }", "dims: [] }", "must specify 'dims'"),
        ("max_batch_size: 8", "max_batch_size: 2", "preferred size must be <= max batch size"),
        ('"grey"', '"white"', "warmup/white"),
    ],
)
def test_the_server_would_have_refused_a_wrong_one(triton, tiny_model, tmp_path, right, wrong, says):
    """So the test above can fail."""
    write_triton(tiny_model, tmp_path / "models")
    config = tmp_path / "models" / "tiny_image" / "config.pbtxt"
    config.write_text(config.read_text().replace(right, wrong, 1))
    with pytest.raises(RuntimeError), serve(triton, tmp_path / "models", ["tiny_image"], tmp_path / "log"):
        pass
    assert says in (tmp_path / "log").read_text()


# --- answers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["http", "grpc"])
@pytest.mark.parametrize("model", MODELS)
def test_single_images_and_batches_get_what_the_library_says_bit_for_bit(server, files, pictures, tmp_path, model, protocol):
    """One request at a time, so that the server puts together no other batches than those that were sent."""
    groups = [pictures[model][:1], pictures[model][1:4], pictures[model][4:12]]
    library = vit.load(files[model], "cpu")
    answers = asked(server, protocol, model, groups, tmp_path, outputs=["logits", "probabilities", "embedding"])
    for images, answer in zip(groups, answers, strict=True):
        expected = library.predict(list(images), batch_size=len(images))
        np.testing.assert_array_equal(answer["logits"], [each.logits for each in expected])
        np.testing.assert_array_equal(answer["embedding"], library.embed(list(images), batch_size=len(images)))
        # softmax in float64 by another version of numpy, whose exp may differ in the last bit
        np.testing.assert_allclose(answer["probabilities"], [each.probabilities for each in expected], rtol=1e-14)


def test_the_trained_network_reads_digits_through_the_server(server, tmp_path):
    images, truth = load_digits("heldout")
    groups = [[encoded(image, "PNG") for image in images[start : start + 8]] for start in range(0, 200, 8)]
    answers = asked(server, "grpc", "digits", groups, tmp_path)
    found = np.concatenate([answer["logits"] for answer in answers]).argmax(axis=1)
    assert (found == truth[:200]).mean() > 0.95  # the network is right on 98 % of all


@pytest.mark.parametrize("protocol", ["http", "grpc"])
@pytest.mark.parametrize("model", MODELS)
def test_requests_that_come_together_run_together_and_nobody_gets_another_ones_answer(server, files, pictures, tmp_path, model, protocol):
    before = executions(server, model)
    groups = [[image] for image in pictures[model]] * 4
    answers = asked(server, protocol, model, groups, tmp_path, workers=16)
    after = executions(server, model)
    runs = {size: count - before.get(size, 0) for size, count in after.items()}
    assert sum(size * count for size, count in runs.items()) == len(groups)
    assert sum(runs.values()) <= len(groups) / 2  # two images a run at least, on average
    assert max(size for size, count in runs.items() if count) <= 8
    library = vit.load(files[model], "cpu")
    expected = np.stack([each.logits for each in library.predict([image for (image,) in groups], batch_size=1)])
    found = np.concatenate([answer["logits"] for answer in answers])
    # Another batch size rounds otherwise: what the file itself is limited to, its limit times PyTorch's own float32 error.
    manifest, scale = library.manifest, np.sqrt((expected**2).mean())
    assert manifest.parity is not None
    assert isinstance(manifest.parity.limits, Limits)
    assert manifest.golden is not None
    limit = manifest.parity.limits.rms * manifest.golden.floor["logits"].rms
    assert np.sqrt(((found - expected) ** 2).mean()) / scale <= limit
    assert (np.abs(found - expected).max(axis=1) < np.abs(found - np.roll(expected, 1, axis=0)).max(axis=1)).all()


@pytest.mark.parametrize(("protocol", "status"), [("http", "400"), ("grpc", "StatusCode.INVALID_ARGUMENT")])
def test_a_broken_image_fails_its_own_request_and_the_server_lives_on(server, files, pictures, tmp_path, protocol, status):
    good = pictures["digits"]
    groups = [[image] for image in good] + [[good[0], b"no image"], [good[1][:40]], [b""]]
    answers = asked(server, protocol, "digits", groups, tmp_path, workers=len(groups))
    assert ["logits" in answer for answer in answers] == [True] * len(good) + [False] * 3
    for answer, number in zip(answers[-3:], (2, 1, 1), strict=True):  # of the broken image in its request
        assert_mentions(str(answer["message"]), number)
        assert "\n" not in str(answer["message"])
        assert str(answer["status"]) == status
    (again,) = asked(server, protocol, "digits", [good[:1]], tmp_path)
    np.testing.assert_array_equal(again["logits"][0], vit.load(files["digits"], "cpu").predict(good[0]).logits)


def test_too_large_a_batch_is_refused_by_the_server(server, pictures, tmp_path):
    (answer,) = asked(server, "http", "digits", [pictures["digits"][:9]], tmp_path)
    assert "batch-size must be <= 8" in str(answer["message"])


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_the_example_names_classes(server, tmp_path, protocol):
    images, truth = load_digits("heldout")
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path, image in zip(paths, images[700:703], strict=True):
        Image.fromarray(image).save(path)
    address = server.http if protocol == "http" else server.grpc
    text = server.run(CLIENT, "digits_image", *paths, "--protocol", protocol, "--address", address, "--topk", 2)
    lines = text.splitlines()
    assert lines[::3] == [str(path) for path in paths]
    assert [line.split()[1] for line in lines[1::3]] == [str(label) for label in truth[700:703]]


# --- the server -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_perf_analyzer_drives_it(server, pictures, protocol):
    before = sum(size * count for size, count in executions(server, "digits").items())
    found = server.perf("digits_image", pictures["digits"], protocol, concurrency=4, requests=200)
    assert 0 < found["p50_ms"] <= found["p95_ms"]
    assert sum(size * count for size, count in executions(server, "digits").items()) - before >= 200


def test_it_listens_on_loopback_alone(server):
    ports = {int(address.rsplit(":", 1)[1]) for address in (server.http, server.grpc)}
    lines = [line.split() for table in ("tcp", "tcp6") for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]]
    listening = [address.split(":") for _, address, _, state, *_ in lines if state == "0A"]
    hosts = [host for host, port in listening if int(port, 16) in ports]
    assert len(hosts) == 2
    assert set(hosts) <= {"0100007F", "0000000000000000FFFF00000100007F"}  # 127.0.0.1, as it is and in a socket of IPv6


def test_it_stops_with_its_block_even_if_that_fails(triton, tiny_model, tmp_path):
    write_triton(tiny_model, tmp_path / "models")
    addresses, before = [], shared_memory()

    def fail() -> None:
        with serve(triton, tmp_path / "models", ["tiny_image"], tmp_path / "log") as running:
            addresses.append(running.http)
            assert shared_memory() > before
            assert running.get("v2")["name"] == "triton"
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"http://{addresses[0]}/v2")
    assert shared_memory() == before


def shared_memory() -> set[str]:
    """What this process's servers have there."""
    return {name for name in os.listdir("/dev/shm") if name.startswith(f"vit_{os.getpid()}_")}

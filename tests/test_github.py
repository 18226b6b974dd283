"""The action that others use in their workflows: its own steps, run here by bash as GitHub runs them."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import assert_mentions
from junitparser import JUnitXml

ROOT = Path(__file__).parents[1]
ACTION = yaml.safe_load((ROOT / "action.yml").read_text())
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # where what pip installed is found
WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())


def steps(inputs: dict[str, str], folder: Path) -> list[subprocess.CompletedProcess[str]]:
    """Each step's process, until one fails; the inputs that are not given have their defaults."""
    given = {name: inputs.get(name, spec.get("default")) for name, spec in ACTION["inputs"].items()}
    done: list[Any] = []
    for step in ACTION["runs"]["steps"]:
        values = {name: given[text.removeprefix("${{ inputs.").removesuffix(" }}")] for name, text in step["env"].items()}
        done.append(
            subprocess.run(
                ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
                env={**os.environ, **values, "GITHUB_STEP_SUMMARY": str(folder / "summary.md"), "PATH": PATH},
                cwd=folder,
                capture_output=True,
                text=True,
                check=False,
            )
        )
        if done[-1].returncode:
            break
    return done


def test_the_action_passes_an_honest_file_and_leaves_a_report_and_a_summary(tiny_model: Path, tmp_path: Path):
    install, check = steps({"models": f"{tiny_model}\n", "package": ""}, tmp_path)
    assert (install.returncode, check.returncode) == (0, 0), check.stderr
    assert [suite.failures for suite in JUnitXml.fromfile(str(tmp_path / "parity.xml"))] == [0]
    assert_mentions((tmp_path / "summary.md").read_text(), "vit-parity", tiny_model.name)


def test_the_action_fails_with_a_wrong_file(tiny_model: Path, tmp_path: Path):
    bad = tmp_path / "a file.onnx"
    data = bytearray(tiny_model.read_bytes())
    place = data.find(b"blocks.0.attn.proj.bias") + 200
    data[place] ^= 0x40  # a bit of an exponent, somewhere in the bias
    bad.write_bytes(data)
    check = steps({"models": f"{tiny_model}\n{bad}", "package": ""}, tmp_path)[-1]
    assert check.returncode in (1, 3), check.stderr


def test_what_the_inputs_say_is_never_run(tiny_model: Path, tmp_path: Path):
    """Inputs come from whoever opens a pull request: they reach the shell as variables, quoted, and not as text of the script."""
    for step in ACTION["runs"]["steps"]:
        assert "${{" not in step["run"]
    nasty = f"$(touch {tmp_path}/run); touch {tmp_path}/run #"
    steps({"package": "", "models": nasty, "images": nasty, "providers": nasty, "junit": nasty}, tmp_path)
    assert not (tmp_path / "run").exists()


def test_images_reach_the_command(tiny_model: Path, tmp_path: Path):
    check = steps({"models": str(tiny_model), "package": "", "images": "no such folder\n"}, tmp_path)[-1]
    assert check.returncode == 2
    assert "no such folder" in check.stderr


@pytest.mark.unit
@pytest.mark.parametrize("job", ["test", "parity"])
def test_the_projects_own_workflow_uses_it_and_only_what_there_is(job: str):
    known: dict[str, Callable[[dict[str, Any]], bool]] = {"./": lambda step: set(step["with"]) <= set(ACTION["inputs"])}
    used = [step["uses"] for step in WORKFLOW["jobs"][job]["steps"] if "uses" in step]
    assert all(name in known or name.startswith("actions/") for name in used)
    assert all(known["./"](step) for step in WORKFLOW["jobs"][job]["steps"] if step.get("uses") == "./")
    assert ("./" in used) is (job == "parity")
    targets = (ROOT / "Makefile").read_text()
    for step in WORKFLOW["jobs"][job]["steps"]:
        if step.get("run", "").startswith("make "):
            assert f"\n{step['run'].split()[1]}:" in targets

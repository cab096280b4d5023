"""transformers' own common tests, from the source distribution of the installed version, pass for our classes."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tarfile
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

CASES = Path(__file__).with_name("common_tests.py")
SUITES = [
    node.name
    for node in ast.parse(CASES.read_text()).body
    if isinstance(node, ast.ClassDef) and node.name.endswith("Test")
]
# Some that upstream skips where it finds no reason to run them: without these a suite says little.
CORE_OF_A_MODEL = {
    "test_config",
    "test_save_load",
    "test_can_init_all_missing_weights",
    "test_init_weights_can_init_buffers",
    "test_keep_in_fp32_modules",
    "test_hidden_states_output",
    "test_training_gradient_checkpointing",
    "test_determinism",
}
CORE_OF_A_PROCESSOR = {"test_call_pil", "test_call_numpy", "test_image_processor_from_and_save_pretrained"}


def fetch_source(cache: Path) -> Path:
    """The folder of transformers' source distribution with its tests, downloaded once; skips if it cannot be had."""
    name = f"transformers-{metadata.version('transformers')}"
    folder = cache / name
    if folder.is_dir():
        return folder
    with tempfile.TemporaryDirectory(dir=cache) as work:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "transformers"]
        command += ["--dest", work, name.replace("-", "==")]
        result = subprocess.run(command, capture_output=True, text=True, timeout=300)
        if result.returncode:
            pytest.skip(f"the source distribution {name} cannot be downloaded: {result.stderr.strip()[-300:]}")
        with tarfile.open(Path(work, f"{name}.tar.gz")) as archive:
            tests = [member for member in archive if member.name.startswith(f"{name}/tests/")]
            archive.extractall(work, members=tests, filter="data")
        Path(work, name, "tests", "__init__.py").touch()  # left out of the distribution
        os.replace(Path(work, name), folder)
    return folder


@pytest.fixture(scope="module")
def outcomes(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """What became of each test of each suite: "passed", "skipped", or the failure's text."""
    source = fetch_source(pytestconfig.cache.mkdir("transformers_source"))  # type: ignore[union-attr]
    folder = tmp_path_factory.mktemp("common")
    settings, report = folder / "pytest.ini", folder / "report.xml"
    settings.write_text("[pytest]\n")  # not ours: their tests use markers of their own
    command: list[Any] = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-c", settings, "--noconftest"]
    command += ["-p", "no:cacheprovider", "--disable-warnings", f"--junitxml={report}", CASES]
    environment = os.environ | {"TRANSFORMERS_SOURCE": str(source), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert result.returncode in (0, 1), result.stdout[-4000:] + result.stderr[-2000:]

    suites: dict[str, dict[str, str]] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        outcome = "passed"
        for child in case:
            if child.tag == "skipped":
                outcome = "skipped"
            elif child.tag in ("failure", "error"):
                outcome = child.text or child.tag
        suite = suites.setdefault(case.attrib["classname"].rpartition(".")[2], {})
        # Sub-tests are reported under the name of their test: one failure is the test's.
        if suite.get(case.attrib["name"], "passed") in ("passed", "skipped"):
            suite[case.attrib["name"]] = outcome
    return suites


def test_there_are_suites() -> None:
    """Both kinds of model in each kind of codebook, and the processor."""
    assert len(SUITES) >= 5 and "ImageProcessorTest" in SUITES


@pytest.mark.parametrize("suite", SUITES)
def test_common(outcomes: dict[str, dict[str, str]], suite: str) -> None:
    """No test of the suite fails, and those that matter most were run."""
    tests = outcomes.get(suite, {})
    failed = {name: text for name, text in tests.items() if text not in ("passed", "skipped")}
    assert not failed, "\n\n".join(f"{suite}.{name}\n{text}" for name, text in failed.items())
    core = CORE_OF_A_PROCESSOR if suite == "ImageProcessorTest" else CORE_OF_A_MODEL
    missing = core - {name for name, text in tests.items() if text == "passed"}
    assert not missing, f"not run: {sorted(missing)}"

"""The hooks of pre-commit: the tools that pyproject.toml names, with pinned versions."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / ".pre-commit-config.yaml"

pytestmark = pytest.mark.skipif(not CONFIG.is_file(), reason="not in the source tree")


@pytest.fixture
def hooks() -> list[dict]:
    yaml = pytest.importorskip("yaml")
    [repository] = yaml.safe_load(CONFIG.read_text())["repos"]
    return repository["hooks"]


def test_pre_commit_accepts_the_configuration():
    pytest.importorskip("pre_commit")
    command = [sys.executable, "-m", "pre_commit", "validate-config", str(CONFIG)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_tool_has_a_pinned_version(hooks):
    for hook in hooks:
        tool = hook["entry"].split()[0]
        [pinned] = [one for one in hook["additional_dependencies"] if one.startswith(f"{tool}==")]
        assert re.fullmatch(r"[\w-]+==\d+(\.\d+)+", pinned)


def test_the_tools_are_those_of_the_project(hooks):
    settings = (ROOT / "pyproject.toml").read_text()
    [developers] = re.findall(r"^dev = \[(.+)\]$", settings, re.MULTILINE)
    tools = {hook["entry"].split()[0] for hook in hooks}
    form = {"ruff", "cython-lint", "clang-format", "mypy"}
    assert tools == form | {"cffconvert"}
    assert form < set(re.findall(r'"([\w-]+)', developers))
    for tool in form - {"clang-format"}:
        assert f"[tool.{tool}]" in settings
    assert (ROOT / ".clang-format").is_file()
    for hook in hooks:  # the settings of a tool have one place
        assert not re.search(r"--(line-length|config|select|style)", hook["entry"])


def test_each_kind_of_source_has_a_hook(hooks):
    patterns = [re.compile(hook["files"]) for hook in hooks if "files" in hook]
    kinds = {kind for hook in hooks for kind in hook.get("types_or", ())}
    for path in ("fastrnn/_core/layers.pyx", "fastrnn/_core/model.pxd", "src_c/gemm.h"):
        assert (ROOT / path).is_file()
        assert any(pattern.search(path) for pattern in patterns), path
    assert {"python", "pyi"} <= kinds


def test_continuous_integration_runs_them():
    assert "pre-commit run --all-files" in (ROOT / ".github/workflows/ci.yml").read_text()

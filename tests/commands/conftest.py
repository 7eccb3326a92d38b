"""What one run of `optimize` made and said, and a text."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import Result

from tests.small_models import QUICK, catonnx_


@pytest.fixture(scope="session")
def optimized(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """Return a folder with the output, its plan and its report, and what the command said."""
    folder = tmp_path_factory.mktemp("cli")
    result = catonnx_(
        *("optimize", tiny_llama, "-o", folder / "out", *QUICK),
        *("--report-json", folder / "report.json", "--save-plan", folder / "plan.npz"),
    )
    assert result.exit_code == 0, result.output
    return folder, result


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("The quick brown fox jumps over the lazy dog, and the dog sleeps on. " * 60, encoding="utf-8")
    return path

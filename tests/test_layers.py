"""Imports point down: what a room may know is written here as data, and read off the code as `ast`."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TREES: Mapping[str, str] = {"catonnx": "catonnx", "passes": "catonnx.passes"}
"""Folder -> the package that it is installed as."""

LAYERS: tuple[tuple[str, ...], ...] = (
    ("catonnx.errors", "catonnx.progress", "catonnx.cores"),
    (
        "catonnx.math",
        "catonnx.recipe",
        "catonnx.measures",
        "catonnx.naming",
        "catonnx.files",
        "catonnx.kept",
        "catonnx.ops.place",
    ),
    ("catonnx.ops.nvcc",),
    ("catonnx.graph", "catonnx.ops.build"),
    ("catonnx.passes", "catonnx.runtime"),
    ("catonnx.learned", "catonnx.ops", "catonnx.genai"),
    ("catonnx.analysis",),
    ("catonnx.planning",),
    ("catonnx.report",),
    ("catonnx.narrowing", "catonnx.rounders", "catonnx.outcome", "catonnx.calibrating", "catonnx.rewriting"),
    ("catonnx.workspace", "catonnx.unchanged", "catonnx.reporting"),
    ("catonnx.pipeline",),
    ("catonnx.judging", "catonnx.inspection", "catonnx.doctor", "catonnx.hub.quantizer"),
    ("catonnx",),
    ("catonnx.commands", "catonnx.olive"),
    ("catonnx.cli",),
    ("catonnx.hub",),
    ("catonnx.__main__",),
)
"""Rooms from the ground up. A room may import itself and every room in the rows before its own, not its neighbours."""

ONLY_THERE: Mapping[str, tuple[str, ...]] = {
    "onnxruntime": ("catonnx.runtime",),
    "tokenizers": ("catonnx.runtime",),
    "onnxscript": ("catonnx.graph",),
    "onnx": ("catonnx.graph", "catonnx.runtime"),
    "google": ("catonnx.graph", "catonnx.runtime"),  # protobuf's errors, which onnx lets through
    "scipy": ("catonnx.math",),
    "threadpoolctl": ("catonnx.pipeline", "catonnx.inspection"),
    "torch": ("catonnx.learned",),
    "olive": ("catonnx.olive",),
    "typer": ("catonnx.commands", "catonnx.hub"),
    "lm_eval": ("catonnx.judging",),
    "cairosvg": ("catonnx.reporting",),
    "rich": ("catonnx.commands",),
    "optimum": ("catonnx.hub",),
}
"""Package -> the rooms that may import it. What stands in neither table (transformers, say) may be imported nowhere."""

ALL_BUT: Mapping[str, tuple[str, ...]] = {
    "numpy": ("catonnx.errors", "catonnx.progress", "catonnx.cores"),
    "onnx_ir": (
        "catonnx.errors",
        "catonnx.progress",
        "catonnx.math",
        "catonnx.recipe",
        "catonnx.commands",
        "catonnx.cli",
    ),
}
"""Package -> the rooms that may not import it."""

MODULES = {
    ".".join((package, *file.relative_to(ROOT / tree).with_suffix("").parts)).removesuffix(".__init__"): file
    for tree, package in TREES.items()
    for file in sorted((ROOT / tree).rglob("*.py"))
    # The symlink catonnx/passes shows the files of passes/ a second time.
    if file.relative_to(ROOT).parts[:2] != ("catonnx", "passes")
}


def imports(source: str, module: str) -> Iterator[tuple[int, str]]:
    """Yield line and dotted name of everything that the text of `module` imports, in functions and for types too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            # `from . import x` climbs one part of the name, `from .. import x` two.
            above = module.split(".")[: -node.level] if node.level else []
            origin = ".".join([*above, *filter(None, [node.module])])
            yield from ((node.lineno, f"{origin}.{name.name}") for name in node.names)


def room_of(module: str) -> tuple[int, str]:
    """Return the row of LAYERS and the room that `module`, or a name in it, belongs to."""
    found = [
        (row, room)
        for row, rooms in enumerate(LAYERS)
        for room in rooms
        if module == room or module.startswith(f"{room}.")
    ]
    return max(found, key=lambda entry: len(entry[1]))


def violation(module: str, imported: str) -> str | None:
    """Return what is wrong with `module` importing `imported`, if anything."""
    row, room = room_of(module)
    package = imported.split(".", maxsplit=1)[0]
    if package == "catonnx":
        other_row, other = room_of(imported)
        return f"{room} may not know {other}" if other != room and other_row >= row else None
    if package in sys.stdlib_module_names:
        return None
    if package in ALL_BUT:
        return f"{room} may not import {package}" if room in ALL_BUT[package] else None
    if package not in ONLY_THERE:
        return f"nobody may import {package}"
    return None if room in ONLY_THERE[package] else f"only {', '.join(ONLY_THERE[package])} may import {package}"


def violations(source: str, module: str) -> list[str]:
    """Return a line for every import in the text of `module` that is not allowed."""
    judged = ((line, name, violation(module, name)) for line, name in imports(source, module))
    return [f"{module} line {line}: import of {name}: {wrong}" for line, name, wrong in judged if wrong]


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module: str) -> None:
    assert violations(MODULES[module].read_text(encoding="utf-8"), module) == []


def test_every_module_has_a_room() -> None:
    homeless = [module for module in MODULES if module != "catonnx" and room_of(module)[1] == "catonnx"]
    assert homeless == [], "give them a place in LAYERS"


def test_tables_name_rooms_that_exist() -> None:
    rooms = {room for row in LAYERS for room in row}
    homes = {room_of(module)[1] for module in MODULES}
    assert rooms == homes
    assert {room for table in (ONLY_THERE, ALL_BUT) for named in table.values() for room in named} <= rooms


def test_what_may_be_imported_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    export = [requirement for requirement in extras["export"] if requirement.startswith("optimum==")]
    extra = [*extras["cpu"], *extras["learned"], *extras["pictures"], *extras["tasks"], *export, "olive"]
    declared = [*project["dependencies"], *extra]
    assert any(requirement.startswith("olive-ai") for requirement in extras["olive"])
    names = {re.split(r"[^\w-]", requirement)[0].replace("-", "_") for requirement in declared}
    assert {*ONLY_THERE, *ALL_BUT} - {"google"} == names  # protobuf comes with onnx


def test_all_files_are_read() -> None:
    assert {"catonnx", "catonnx.math.cat", "catonnx.passes.absorb", "catonnx.runtime.sessions"} <= MODULES.keys()
    assert "catonnx.passes.passes" not in MODULES


@pytest.mark.parametrize(
    ("module", "text", "wrong"),
    [
        ("catonnx.math.cat", "from catonnx.graph.load import read", "catonnx.math may not know catonnx.graph"),
        ("catonnx.math.cat", "import onnx_ir as ir", "catonnx.math may not import onnx_ir"),
        ("catonnx.math.cat", "import onnx", "only catonnx.graph, catonnx.runtime may import onnx"),
        ("catonnx.errors", "import catonnx.recipe", "catonnx.errors may not know catonnx.recipe"),
        ("catonnx.errors", "import numpy as np", "catonnx.errors may not import numpy"),
        ("catonnx.graph.sites", "from onnxruntime import InferenceSession", "only catonnx.runtime may import"),
        ("catonnx.graph.sites", "from .. import passes", "catonnx.graph may not know catonnx.passes"),
        ("catonnx.graph.sites", "from ..passes import absorb", "catonnx.graph may not know catonnx.passes"),
        ("catonnx.passes.absorb", "from catonnx import runtime", "catonnx.passes may not know catonnx.runtime"),
        ("catonnx.passes.absorb", "def f():\n    import onnxruntime.capi", "only catonnx.runtime may import"),
        ("catonnx.runtime.text", "from catonnx.passes import absorb", "catonnx.runtime may not know catonnx.passes"),
        ("catonnx.runtime.text", "import torch", "only catonnx.learned may import torch"),
        ("catonnx.runtime.text", "import transformers", "nobody may import transformers"),
        ("catonnx.passes.insert", "from transformers import AutoModel", "nobody may import transformers"),
        (
            "catonnx.planning.plan",
            "from catonnx.pipeline import optimize",
            "catonnx.planning may not know catonnx.pipeline",
        ),
        ("catonnx.pipeline", "import catonnx", "catonnx.pipeline may not know catonnx"),
        ("catonnx.pipeline", "from catonnx import __version__", "catonnx.pipeline may not know catonnx"),
        ("catonnx", "from catonnx.cli import main", "catonnx may not know catonnx.cli"),
        ("catonnx.report", "if TYPE_CHECKING:\n    from rich.table import Table", "only catonnx.commands"),
        ("catonnx.pipeline", "from catonnx.commands import app", "catonnx.pipeline may not know catonnx.commands"),
        ("catonnx.commands.app", "import onnx_ir", "catonnx.commands may not import onnx_ir"),
        ("catonnx.commands.app", "import models", "nobody may import models"),
    ],
)
def test_a_planted_import_is_caught(module: str, text: str, wrong: str) -> None:
    found = violations(f"import json\nimport catonnx.errors\n{text}\n", module)
    assert any(wrong in line for line in found), found


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("catonnx.math.cat", "import numpy\nfrom scipy import linalg\nfrom catonnx.math.moments import Moments"),
        ("catonnx.graph.load", "import onnx_ir\nfrom .sites import Site\nfrom ..errors import ModelError"),
        ("catonnx.runtime.sessions", "def f():\n    import onnxruntime"),
        ("catonnx.pipeline", "from catonnx.passes import absorb\nfrom catonnx.runtime.compare import compare_models"),
        ("catonnx.commands", "import typer\nfrom catonnx import __version__, optimize"),
    ],
)
def test_what_is_allowed_passes(module: str, text: str) -> None:
    assert violations(text, module) == []

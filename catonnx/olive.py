"""catonnx as a pass of Microsoft Olive, and the package configuration by which Olive finds it.

    python -m catonnx.olive package.json                              # Olive's own passes, and this one
    olive run --config workflow.json --package-config package.json    # a workflow with {"type": "CatOnnx", ...}

The pass takes every field of `catonnx.Recipe` by its name, and `preset`, `target` and `recipe_file`. Unless it is told
otherwise it optimizes for the execution provider of Olive's accelerator.

Exit codes of the command: 0 the file is written; 2 wrong arguments; 6 it cannot be written; 8 there is no Olive.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any, get_type_hints

from catonnx.errors import CatonnxError, RuntimeUnavailableError
from catonnx.files import write_json
from catonnx.pipeline import optimize
from catonnx.recipe import Recipe
from catonnx.recipe.file import read_recipe
from catonnx.recipe.presets import NAMES, settled

try:
    from olive.hardware.accelerator import AcceleratorSpec
    from olive.model import ONNXModelHandler
    from olive.package_config import OlivePackageConfig
    from olive.passes import Pass
    from olive.passes.pass_config import BasePassConfig, PassConfigParam
except ImportError as error:
    _MISSING = f"Olive cannot be imported: {error}; pip install olive-ai requests"
    if __name__ == "__main__":
        print(f"error: {_MISSING}", file=sys.stderr)
        sys.exit(RuntimeUnavailableError.exit_code)
    raise ImportError(_MISSING) from error

_ENTRY = {
    "module_path": "catonnx.olive.CatOnnx",
    "supported_providers": ["CPUExecutionProvider", "CUDAExecutionProvider"],
    "supported_accelerators": ["cpu", "gpu"],
    "supported_precisions": ["int4"],
    "supported_algorithms": [],
    "supported_quantization_encodings": ["qdq", "qop"],
    "dataset": "dataset_optional",
}


class CatOnnx(Pass):  # type: ignore[misc]  # Olive comes without types
    """Optimize an ONNX model by `catonnx.optimize`: Concentration-Alignment Transforms, then 4 bits."""

    @staticmethod
    def is_accelerator_agnostic(accelerator_spec: AcceleratorSpec) -> bool:
        """Say no: what is written may depend on the execution provider."""
        del accelerator_spec
        return False

    @classmethod
    def _default_config(cls, accelerator_spec: AcceleratorSpec) -> dict[str, PassConfigParam]:
        del accelerator_spec
        hints = get_type_hints(Recipe)
        fields = {field.name: hints[field.name] for field in dataclasses.fields(Recipe)}
        named = dict.fromkeys((*NAMES, "recipe_file"), str)
        return {
            name: PassConfigParam(type_=hint | None, default_value=None, description=f"See `{name}` of catonnx.")
            for name, hint in (named | fields).items()
        }

    def _run_for_config(
        self, model: ONNXModelHandler, config: type[BasePassConfig], output_model_path: str
    ) -> ONNXModelHandler:
        said = {name: value for name, value in config.model_dump().items() if value is not None}
        said = {name: value for name, value in said.items() if name in self.default_config(self.accelerator_spec)}
        file = said.pop("recipe_file", None)
        whole = settled((read_recipe(Path(file)) if file else {}) | said)
        if self.accelerator_spec.execution_provider == "CUDAExecutionProvider":
            whole.setdefault("provider", "cuda")
        folder = Path(output_model_path).with_suffix("")
        optimize(model.model_path, folder, Recipe(**whole), force=True)
        (file,) = folder.glob("*.onnx")
        return ONNXModelHandler(model_path=str(folder), onnx_file_name=file.name)


def package_config() -> dict[str, Any]:
    """Return Olive's own package configuration with this pass added to it."""
    whole: dict[str, Any] = json.loads(Path(OlivePackageConfig.get_default_config_path()).read_text(encoding="utf-8"))
    whole["passes"][CatOnnx.__name__] = _ENTRY
    return whole


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m catonnx.olive", description="Olive's package configuration.")
    parser.add_argument("file", type=Path, help="the JSON to write; - for stdout")
    try:
        write_json(parser.parse_args(arguments).file, package_config())
    except CatonnxError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())

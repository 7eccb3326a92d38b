"""`CatQuantizer`: what users of Optimum's `ORTQuantizer` know how to use."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from catonnx.errors import ModelError, UsageError
from catonnx.graph.load import find
from catonnx.pipeline import optimize
from catonnx.progress import Progress, silent
from catonnx.recipe import Recipe
from catonnx.recipe.presets import for_genai, settled

if TYPE_CHECKING:
    from catonnx.planning.siteplan import Plan
    from catonnx.report import Report


class CatQuantizer:
    """Makes 4-bit models of exported ones.

        quantizer = CatQuantizer.from_pretrained("export")
        quantizer.quantize(save_dir="int4", recipe=catonnx.Recipe(group_size=64))
        model = ORTModelForCausalLM.from_pretrained("int4")

    Attributes:
        folder: Of the export.
        file_name: Of the model in it; None where it holds one, or a `model.onnx`.
        report: What the last `quantize` did; None before.
    """

    def __init__(self, folder: Path, file_name: str | None = None) -> None:
        self.folder, self.file_name = folder, file_name
        self.report: Report | None = None

    @classmethod
    def from_pretrained(
        cls, model_or_path: str | os.PathLike[str] | object, file_name: str | None = None
    ) -> CatQuantizer:
        """Take an export.

        Args:
            model_or_path: The folder of an export (`model.onnx`, config, tokenizer), or an `ORTModel` that was loaded
                from one; of a model with several parts, the folder.
            file_name: Of the model, where the folder holds several.

        Raises:
            ModelError: there is no such folder, no model in it, or several of which none was named.
        """
        if not isinstance(model_or_path, (str, os.PathLike)):
            path = _file_of(model_or_path)
            model_or_path, file_name = path.parent, file_name or path.name
        folder = Path(model_or_path)
        if not folder.is_dir():
            raise ModelError(
                "there is no such folder",
                where=folder,
                hint=f"a model of a hub is exported first: optimum-cli export catonnx --model {folder} OUT",
            )
        find(folder, file_name)
        return cls(folder, file_name)

    def quantize(
        self,
        save_dir: str | os.PathLike[str],
        recipe: Recipe | Mapping[str, Any] | None = None,
        *,
        plan: Plan | None = None,
        genai: bool | None = None,
        force: bool = False,
        progress: Progress = silent,
    ) -> Path:
        """Transform, round, verify and save the model, its config and tokenizer beside it.

        Args:
            save_dir: A new folder; it appears when everything is verified, or not at all.
            recipe: What to do, or its fields by name, `preset` and `target` among them; the default rounds weights to
                int4 in groups of 32 after CAT.
            plan: As of `catonnx.optimize`.
            genai: As of `catonnx.optimize`; None leaves it to the recipe's `target`.
            force: Replace `save_dir` if it exists.
            progress: Told of long steps.

        Returns:
            `save_dir`; the `report` says what was done.

        Raises:
            CatonnxError: one of its subclasses, see `catonnx.errors`; `save_dir` is untouched then.
        """
        if isinstance(recipe, Mapping):
            try:
                genai = for_genai(recipe) if genai is None else genai
                recipe = Recipe(**settled(recipe))
            except TypeError as error:  # an unknown field
                raise UsageError(
                    f"this is no recipe: {error}", hint="its fields are those of catonnx.Recipe"
                ) from error
        self.report = optimize(
            self.folder,
            save_dir,
            recipe,
            file_name=self.file_name,
            plan=plan,
            force=force,
            genai=bool(genai),
            progress=progress,
        )
        return Path(save_dir)


def _file_of(model: object) -> Path:
    """Return the .onnx file that an ORTModel has been loaded from."""
    # Optimum's ORTModel has a `path`, and had a `model_path`; those with several parts have one for each of them.
    path = getattr(model, "path", None) or getattr(model, "model_path", None)
    if isinstance(path, (str, os.PathLike)):
        return Path(path)
    raise ModelError(
        f"this {type(model).__name__} was not loaded from one .onnx file",
        hint="name the folder of an export, and the file in it by file_name",
    )

"""A folder that onnxruntime-genai opens as it is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import onnx_ir as ir

from catonnx.errors import CatonnxError, ModelError, OutputError, UsageError
from catonnx.genai import config as genai_config
from catonnx.genai.decoder import Decoder, decoder_of
from catonnx.genai.tokenizer import mended, mended_config
from catonnx.graph import load
from catonnx.graph.operators import DOMAIN
from catonnx.ops.place import BUILD, NAME, has_cuda, library
from catonnx.recipe import Recipe

CONFIG_FILE = "genai_config.json"
_NEEDED = ("config.json", "tokenizer.json")
_READ = (*_NEEDED, CONFIG_FILE, "generation_config.json", "tokenizer_config.json")
"""By onnxruntime-genai, or by us for it."""
_MEND = "put a sound one there"


def check_folder(source: load.Source) -> None:
    """Refuse, before long work, a model without what onnxruntime-genai has to be told.

    Raises:
        UsageError: if a file was given and no folder, or config.json or tokenizer.json is missing.
        ModelError: if one of them, or of what else is read there, is no JSON.
    """
    if source.folder is None:
        raise UsageError(
            "onnxruntime-genai opens folders with config and tokenizer, and this is a file",
            where=source.path,
            hint="give the folder that it lies in",
        )
    whole = (source.folder / CONFIG_FILE).is_file()
    for name in () if whole else _NEEDED:
        if not (source.folder / name).is_file():
            raise UsageError(
                f"onnxruntime-genai needs {name} beside the model",
                where=source.folder,
                hint="put it there (Optimum's exports have it), or leave --genai out",
            )
    for name in _READ:
        _optional(source.folder / name)


def prepare(stage: Path, source: load.Source, recipe: Recipe, *, wanted: bool) -> tuple[str, ...]:
    """Make the files of onnxruntime-genai right in a result: those that came along, and those that are wanted.

    Args:
        stage: The result, with `model.onnx` and what was copied from the source's folder.
        source: The model that it was made from.
        recipe: How.
        wanted: Write them where there are none.

    Returns:
        What was done, and what is missing, in sentences; nothing if there was nothing to do.

    Raises:
        OutputError: if a file cannot be written.
    """
    file = stage / CONFIG_FILE
    if not (wanted or file.is_file()):
        return ()
    found = load.read(stage / genai_config.MODEL_FILE)
    decoder = decoder_of(found)
    try:
        config = _read(file) if file.is_file() else {}
        told, config = _config(stage, source, config, decoder, wanted=wanted)
    except ModelError as error:
        return (f"{CONFIG_FILE} is copied as it is: {error.what}",)
    if not genai_config.is_whole(config):
        return told
    try:
        told += _set_options(stage, config, decoder, found, recipe)
        _write(file, config)
        if wanted:
            told += _mend_tokenizer(stage, config["model"])
    except OSError as error:
        raise OutputError(f"the files of onnxruntime-genai cannot be written: {error.strerror}", where=stage) from error
    return told


def _config(
    stage: Path, source: load.Source, config: dict[str, Any], decoder: Decoder | str, *, wanted: bool
) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Return remarks and the content of genai_config.json; empty if there is none."""
    if genai_config.is_whole(config):
        named = genai_config.decoder_file(config)
        found = genai_config.renamed(config, source.path.name)
        if found == config and named not in (None, genai_config.MODEL_FILE):
            found["model"]["decoder"]["filename"] = genai_config.MODEL_FILE
            return (
                f"{CONFIG_FILE} came along, named {named}, and names what was optimized: {source.path.name}",
            ), found
        return (f"{CONFIG_FILE} came along and names the new model",), found
    if not wanted:
        return (), {}
    if isinstance(decoder, str):
        return (f"no {CONFIG_FILE} was written: {decoder}",), {}
    config, generation = (_optional(stage / name) for name in ("config.json", "generation_config.json"))
    built, told = genai_config.build(decoder, config, generation)
    return (f"{CONFIG_FILE} is written: onnxruntime_genai.Model(OUT) opens the folder", *told), built


def _set_options(
    stage: Path, config: dict[str, Any], decoder: Decoder | str, model: ir.Model, recipe: Recipe
) -> tuple[str, ...]:
    """Put into the session's options what the result needs: our operators' library, and the provider."""
    options = genai_config.session_options(config)
    providers = options.setdefault("provider_options", [])
    if recipe.provider == "cuda" and providers == []:
        providers.append({"cuda": {}})
    if recipe.rounds and recipe.form == "qdq" and recipe.provider == "cpu":
        # What ONNX Runtime takes by itself, and what the result was verified with; "0" keeps activations exact.
        options.setdefault(genai_config.LEVEL, "4")
    return _add_library(stage, options, decoder) if DOMAIN in model.opset_imports else ()


def _add_library(stage: Path, options: dict[str, Any], decoder: Decoder | str) -> tuple[str, ...]:
    instead = "our operators run as the functions that the model holds"
    if options.get("custom_ops_library", NAME) != NAME:
        return (f"{instead}: the config names another library, {options['custom_ops_library']}",)
    try:
        built = library()
    except CatonnxError as error:
        return (f"{instead}: {error}",)
    if built is None:
        return (f"{instead}: the library is not built; {BUILD} builds it",)
    if isinstance(decoder, Decoder) and decoder.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
        on_cuda = any("cuda" in one for one in options.get("provider_options", ())) and has_cuda(built)
        if decoder.dtype != ir.DataType.BFLOAT16 or not on_cuda:
            return (f"{instead}: the library has no kernels for {decoder.dtype} where this runs",)
    # onnxruntime-genai loads no library from outside of the folder.
    shutil.copyfile(built, stage / NAME)
    options["custom_ops_library"] = NAME
    return (f"{NAME} lies beside the model; it was built for this kind of processor",)


def _mend_tokenizer(stage: Path, ids: dict[str, Any]) -> tuple[str, ...]:
    file = stage / "tokenizer.json"
    if not file.is_file():
        return ("tokenizer.json is missing: give and take token ids",)
    try:
        tokenizer = _read(file)
        settings = stage / "tokenizer_config.json"
        told = []
        right = mended(tokenizer)
        if right is not None:
            _write(file, right)
            told.append("tokenizer.json: its decoder is ByteLevel alone now, which decodes the same")
        given = mended_config(_read(settings) if settings.is_file() else None, tokenizer, ids)
        if given is not None:
            told.append(f"tokenizer_config.json: tokenizer_class is {given['tokenizer_class']}")
            _write(settings, given)
    except ModelError as error:
        return (str(error),)
    return tuple(told)


def _optional(file: Path) -> dict[str, Any]:
    return _read(file) if file.is_file() else {}


def _read(file: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ModelError: if it is none.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{file.name} cannot be read: {error}", where=file, hint=_MEND) from error
    if not isinstance(content, dict):
        raise ModelError(f"{file.name} is not a JSON object", where=file, hint=_MEND)
    return content


def _write(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

"""`optimum-cli catonnx` and `optimum-cli export catonnx`: the options of `catonnx optimize` on Optimum's parser."""

from __future__ import annotations

import argparse
import contextlib
import copy
import tempfile
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import NoneType
from typing import Any

import typer

from catonnx.commands.optimize import optimize_command
from catonnx.commands.terminal import Terminal, guarded
from catonnx.commands.wishes import spelled_as_options, wishes_of, with_plan
from catonnx.errors import CatonnxError, ModelError, RuntimeUnavailableError

_PREFIX = "catonnx_"
"""Of our names in Optimum's namespace, where `model` or `optimize` mean something else."""


def optimum_commands() -> list[Any]:
    """Return what Optimum calls REGISTER_COMMANDS.

    Raises:
        ImportError: this is no Optimum that we know.
    """
    from optimum.commands.base import BaseOptimumCLICommand, CommandInfo
    from optimum.commands.export.base import ExportCommand

    options = _options()
    exporter = _exporter()

    class CatonnxCommand(BaseOptimumCLICommand):  # type: ignore[misc]  # Optimum is not analyzed
        """`optimum-cli catonnx MODEL -o OUT`."""

        COMMAND = CommandInfo("catonnx", "Make an exported ONNX model 4-bit.")

        @staticmethod
        def parse_args(parser: argparse.ArgumentParser) -> None:
            parser.add_argument("model", type=Path, metavar="MODEL", help="The folder of an export, or an .onnx file.")
            parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help="The new folder.")
            _add(parser, options)

        def run(self) -> None:
            _optimize(self.args.model, self.args.output, self.args)

    class CatonnxExportCommand(BaseOptimumCLICommand):  # type: ignore[misc]
        """`optimum-cli export catonnx --model M OUT`."""

        COMMAND = CommandInfo("catonnx", "Export PyTorch to ONNX and make the result 4-bit.")

        @staticmethod
        def parse_args(parser: argparse.ArgumentParser) -> None:
            if exporter is not None:
                exporter.parse_args(parser)
            else:
                parser.add_argument("-m", "--model", required=True)
                parser.add_argument("output", type=Path)
            own = _add(parser, options)
            own.add_argument("--keep-export", type=Path, metavar="DIR", help="Where the float export stays.")

        def run(self) -> None:
            _export(self, exporter)

    return [CatonnxCommand, (CatonnxExportCommand, ExportCommand)]


def _exporter() -> Any:
    """Return the class of `optimum-cli export onnx`, or None where Optimum has no exporter."""
    try:
        from optimum.commands.export.onnx import ONNXExportCommand
    except ImportError:
        return None
    return ONNXExportCommand


def _options() -> list[tuple[Sequence[str], dict[str, Any]]]:
    """Return what `add_argument` is told of every option of `catonnx optimize` but MODEL and OUT."""
    found: list[tuple[Sequence[str], dict[str, Any]]] = []
    for name, hint in typing.get_type_hints(optimize_command, include_extras=True).items():
        if name not in ("model", "out", "return"):
            kind, option = typing.get_args(hint)
            # What typer calls the default is the first of the names in an annotation.
            spelled = (option.default, *(option.param_decls or ()))
            names = tuple(item.partition("/")[0] for item in spelled if isinstance(item, str))
            names = names or (f"--{name.replace('_', '-')}",)
            found.append((names, {"dest": _PREFIX + name, **_argument(kind, option)}))
    return found


def _argument(kind: Any, option: Any) -> dict[str, Any]:
    """Return how argparse reads a value of a type, such as `list[str] | None`."""
    told: dict[str, Any] = {"help": (option.help or "").replace("%", "%%")}
    if kind is bool:
        return told | {"action": "store_true"}
    if bool in typing.get_args(kind):
        return told | {"action": argparse.BooleanOptionalAction}
    (one,) = (part for part in typing.get_args(kind) if part is not NoneType) if _is_optional(kind) else (kind,)
    if typing.get_origin(one) is list:
        told["action"] = "append"
        (one,) = typing.get_args(one)
    if typing.get_origin(one) is typing.Literal:
        told["choices"] = typing.get_args(one)
    else:
        told["type"] = one
    return told | ({"metavar": option.metavar} if option.metavar else {})


def _is_optional(kind: Any) -> bool:
    return NoneType in typing.get_args(kind)


def _add(parser: argparse.ArgumentParser, options: Sequence[tuple[Sequence[str], dict[str, Any]]]) -> Any:
    group = parser.add_argument_group("catonnx", "As of `catonnx optimize`.")
    for names, told in options:
        # A flag that some version of Optimum has too stays Optimum's: no command of it may break.
        with contextlib.suppress(argparse.ArgumentError):
            group.add_argument(*names, **told)
    return group


def _values(args: argparse.Namespace) -> dict[str, Any]:
    """Return what was given for our options, as the parameters of `catonnx optimize`; the others have defaults."""
    given = {name.removeprefix(_PREFIX): value for name, value in vars(args).items() if name.startswith(_PREFIX)}
    return {name: value for name, value in given.items() if value is not None} | {"verbose": bool(given.get("verbose"))}


def _optimize(model: Path, out: Path, args: argparse.Namespace) -> None:
    with _exit_code():
        optimize_command(model=model, out=out, **_values(args))


def _export(command: Any, exporter: Any) -> None:
    """Run `optimum-cli export onnx` with the arguments of a command, then optimize what it made.

    Args:
        command: Of Optimum's, with parsed arguments.
        exporter: The class that exports; None if there is none.
    """
    args, values = command.args, _values(command.args)
    with _exit_code(), guarded(verbose=values["verbose"], options=spelled_as_options(values)):
        if exporter is None:
            raise RuntimeUnavailableError("Optimum's exporter to ONNX is not there", hint="pip install optimum-onnx")
        _check_before(args)
        with _folder_for(args) as folder:
            exporting = copy.copy(args)
            exporting.output = folder
            with _explained(args.model):
                exporter(
                    command.subparsers, exporting, command.COMMAND, from_defaults_factory=True, parser=command.parser
                ).run()
            _optimize(folder, args.output, args)
    if args.keep_export is None:
        text = "the float export is gone; --keep-export DIR keeps it, for `catonnx evaluate OUT --against DIR`"
        Terminal(quiet=bool(values.get("quiet"))).note(text)


def _check_before(args: argparse.Namespace) -> None:
    """Refuse, before a long export, what would be refused after it.

    Raises:
        UsageError: options contradict each other.
        OutputError: a folder is there already.
    """
    from catonnx.workspace import check_free

    values = _values(args)
    if "plan" not in values:
        with_plan(wishes_of(values), None, Path(), Terminal(quiet=True))
    check_free(args.output, bool(values.get("force")))
    if args.keep_export is not None:
        check_free(args.keep_export, force=False)


@contextlib.contextmanager
def _folder_for(args: argparse.Namespace) -> Iterator[Path]:
    """Give a folder for the float export, beside the output: that is where there is room."""
    if args.keep_export is not None:
        yield args.keep_export
        return
    beside = next(folder for folder in args.output.absolute().parents if folder.is_dir())
    with tempfile.TemporaryDirectory(prefix=f".{args.output.name}.export-", dir=beside) as folder:
        yield Path(folder) / "export"


@contextlib.contextmanager
def _explained(model: str) -> Iterator[None]:
    """Turn whatever stops Optimum's exporter into one of our errors."""
    try:
        yield
    except CatonnxError:
        raise
    except Exception as error:  # Optimum, transformers and torch have no common base
        lines = str(error).strip().splitlines()
        told = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
        hint = f"--verbose shows where; optimum-cli export onnx --model {model} stops there too"
        raise ModelError(f"Optimum cannot export this model: {told}", where=model, hint=hint) from error


@contextlib.contextmanager
def _exit_code() -> Iterator[None]:
    """Let the process end with the code of `catonnx optimize`."""
    try:
        yield
    except typer.Exit as end:
        raise SystemExit(end.exit_code) from end

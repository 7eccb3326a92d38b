"""`catonnx doctor`: what works on this machine."""

from __future__ import annotations

from catonnx.commands.options import (
    JsonOption,
    VerboseOption,
)
from catonnx.commands.terminal import Terminal, guarded
from catonnx.errors import RuntimeUnavailableError
from catonnx.files import check_json


def doctor_command(json_file: JsonOption = None, verbose: VerboseOption = False) -> None:
    """Show what is installed, which providers and kernels really work, and what to install."""
    with guarded(verbose=verbose):
        check_json(json_file)

        from catonnx.commands.tables import examined
        from catonnx.doctor import examine, to_json, works

        findings = examine()
        Terminal().deliver(json_file, to_json(findings), examined(findings))
        if not works(findings):
            raise RuntimeUnavailableError("no model runs here", hint="what was found says what to do")

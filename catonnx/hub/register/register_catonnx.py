"""Where `optimum-cli` looks for commands: installed as `optimum/commands/register/register_catonnx.py`.

It is read by every call of `optimum-cli`, whatever the command; the folder must hold no `__init__.py`.
"""

from __future__ import annotations

import sys
from typing import Any


def _commands() -> list[Any]:
    try:
        from catonnx.hub.commands import optimum_commands

        return optimum_commands()
    except Exception as error:  # whatever is wrong with catonnx, Optimum's own commands go on
        print(f"optimum-cli goes on without catonnx: {type(error).__name__}: {error}", file=sys.stderr)
        return []


REGISTER_COMMANDS = _commands()

"""What a measurement ran on: processor, graphics card, versions, date."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from catonnx.cores import usable_cores
from catonnx.measures import versions

_GPU_FIELDS = ("name", "driver_version", "memory.total", "compute_cap")


def surroundings() -> dict[str, Any]:
    """Return date, machine and versions, for the head of a file of results."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": {
            "cpu": _processor(),
            "cores": usable_cores(),
            "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
            "system": f"{platform.system()} {platform.release()}",
            "load_1_minute": round(os.getloadavg()[0], 2),
        },
        "versions": versions(),
    }


def graphics_cards() -> list[dict[str, str]]:
    """Return name, driver, memory and compute capability of every card that nvidia-smi knows; empty without one."""
    answer = _nvidia_smi(f"--query-gpu={','.join(_GPU_FIELDS)}", "--format=csv,noheader")
    lines = [line.split(",") for line in answer.splitlines() if line.strip()]
    return [dict(zip(_GPU_FIELDS, (cell.strip() for cell in line), strict=False)) for line in lines]


def graphics_memory_used() -> float | None:
    """Return the memory in use on the first card in MiB, by all processes; None if nvidia-smi does not tell."""
    answer = _nvidia_smi("--query-gpu=memory.used", "--format=csv,noheader,nounits").splitlines()
    try:
        return float(answer[0])
    except (IndexError, ValueError):
        return None


def _nvidia_smi(*arguments: str) -> str:
    try:
        run = subprocess.run(["nvidia-smi", *arguments], capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return run.stdout if run.returncode == 0 else ""


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()

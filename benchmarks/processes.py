"""Work in a process of its own, where nothing else has used memory before."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def in_new_process(function: Callable[..., T], *arguments: object) -> T:
    """Call a function of a module in a fresh interpreter, and return what it returns."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result(timeout=300)


def memory() -> float:
    """The memory of this process, in MB (resident)."""
    return _status("VmRSS")


def forget_peak() -> float:
    """Let `peak_memory` begin anew; returns the memory of this process, in MB."""
    Path("/proc/self/clear_refs").write_text("5")  # proc(5)
    return peak_memory()


def peak_memory() -> float:
    """The most memory that this process had, in MB (resident)."""
    return _status("VmHWM")


def _status(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) / 1e3
    raise RuntimeError(f"this system does not say {field}")

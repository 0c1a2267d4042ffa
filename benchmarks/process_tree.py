"""Measure CPU time and memory of a process with all its children."""

from pathlib import Path

import psutil


def cpu_seconds() -> float:
    """Return the CPU seconds of this process and its children, finished ones included."""
    total = 0.0
    for process in _tree(psutil.Process()):
        try:
            used = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += used.user + used.system + used.children_user + used.children_system
    return total


def memory(root: psutil.Process) -> dict[str, int]:
    """Return the memory of a process and its children, in bytes.

    `held` is the proportional share of anonymous and shared memory. PSS and USS count the pages of
    files too, libraries above all, which other processes on the machine happen to share or not.
    """
    total = {"held_bytes": 0, "pss_bytes": 0, "uss_bytes": 0}
    for process in _tree(root):
        try:
            lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
        except (OSError, ProcessLookupError):
            continue  # it has ended
        sizes = {line.split()[0]: int(line.split()[1]) << 10 for line in lines[1:]}
        total["held_bytes"] += sizes["Pss_Anon:"] + sizes["Pss_Shmem:"]
        total["pss_bytes"] += sizes["Pss:"]
        total["uss_bytes"] += sizes["Private_Clean:"] + sizes["Private_Dirty:"]
    return total


def _tree(root: psutil.Process) -> list[psutil.Process]:
    try:
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []

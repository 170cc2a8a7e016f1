"""What a server's processes use: CPU time and memory of the whole tree, read from /proc.

The tree is the server's process, its descendants, and everything in its session or process group, so that a child that
was handed to another parent (by a fork server, say) still counts. The server must lead a session of its own.
"""

import os
import pathlib
from dataclasses import dataclass

PROC = pathlib.Path("/proc")
TICK_SECONDS = 1 / os.sysconf("SC_CLK_TCK")
MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class _Stat:
    pid: int
    parent: int
    group: int
    session: int
    ticks: int


@dataclass(frozen=True, slots=True)
class Memory:
    """Of all processes together, in bytes. `pss` counts what is shared once; `rss` once for each process.

    `peak_rss` is the sum of each process's own greatest RSS.
    """

    rss: int
    pss: int
    peak_rss: int


def tree(root: int) -> list[int]:
    """The ids of the tree's processes."""
    return [stat.pid for stat in _tree_stats(root)]


def cpu_seconds(root: int) -> float:
    """User and system time of the tree, that of children which have ended and were waited for included."""
    return sum(stat.ticks for stat in _tree_stats(root)) * TICK_SECONDS


def memory(root: int) -> Memory:
    rss = pss = peak_rss = 0
    for pid in tree(root):
        fields = _fields(pid, "smaps_rollup")
        rss += fields.get("Rss", 0)
        pss += fields.get("Pss", 0)
        peak_rss += _fields(pid, "status").get("VmHWM", 0)
    return Memory(rss, pss, peak_rss)


def reset_peaks(root: int) -> None:
    """Let `peak_rss` begin at what is used now."""
    for pid in tree(root):
        try:
            (PROC / str(pid) / "clear_refs").write_text("5")
        except OSError:
            pass


def _tree_stats(root: int) -> list[_Stat]:
    stats = [stat for entry in os.listdir(PROC) if entry.isdigit() and (stat := _stat(int(entry)))]
    parents = {stat.pid: stat.parent for stat in stats}
    return [
        stat for stat in stats if stat.session == root or stat.group == root or root in _ancestors(stat.pid, parents)
    ]


def _ancestors(pid: int, parents: dict[int, int]) -> list[int]:
    line = [pid]
    while (parent := parents.get(line[-1], 0)) and parent not in line:
        line.append(parent)
    return line


def _stat(pid: int) -> _Stat | None:
    try:
        text = (PROC / str(pid) / "stat").read_text()
    except OSError:
        return None
    # The name stands in parentheses and may hold anything.
    fields = text.rpartition(")")[2].split()
    ticks = sum(map(int, fields[11:15]))  # utime, stime, cutime, cstime
    return _Stat(pid, int(fields[1]), int(fields[2]), int(fields[3]), ticks)


def _fields(pid: int, name: str) -> dict[str, int]:
    """The `Key: N kB` lines of a file of /proc, in bytes; empty when the process has gone."""
    try:
        lines = (PROC / str(pid) / name).read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in lines if line.endswith(" kB") and ":" in line)
    return {key: int(value.split()[0]) * 1024 for key, value in pairs}

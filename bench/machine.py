"""The machine and the software that a result belongs to."""

import importlib.metadata
import os
import pathlib
import platform
import time

PACKAGES = ("numpy", "uvloop", "httptools", "orjson", "protobuf", "hpack", "onnxruntime")


def describe() -> dict[str, str]:
    """What a reader needs to judge the figures by; no name that would say whose machine it is."""
    return {
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": ", ".join(f"{name} {version}" for name in PACKAGES if (version := _version(name))),
        "merrow": _version("merrow") or "from the source tree",
    }


def loop_ms() -> float:
    """How long a fixed piece of Python takes, at best of three: a shared machine's speed at this moment."""
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        total = 0
        for number in range(1_000_000):
            total += number
        best = min(best, time.perf_counter() - start)
    return best * 1e3


def _processor() -> str:
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None

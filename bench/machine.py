"""What a number depends on besides the code: machine, versions, flags, revision."""

from __future__ import annotations

import datetime
import importlib.metadata
import importlib.util
import os
import platform
import re
import subprocess
from pathlib import Path

import torch

from bench.worker import ROOT

PACKAGES = ("torch", "numpy", "submodlib-py", "faiss-cpu", "scikit-learn", "usearch")


def set_threads(count: int) -> None:
    """Let torch, and numpy's linear algebra where threadpoolctl is installed, use this many threads."""
    torch.set_num_threads(count)
    if importlib.util.find_spec("threadpoolctl") is not None:
        import threadpoolctl

        threadpoolctl.threadpool_limits(count)


def facts(rounds: str) -> dict[str, str]:
    """Name and value of everything worth writing beside a measurement of so many rounds."""
    return {
        "machine": f"{cpu()}; {caches()}; {memory()}",
        "system": f"{platform.system()} {platform.release()}; governor {governor()}; huge pages {huge_pages()}",
        "threads": f"{torch.get_num_threads()} of {os.cpu_count()} cores for everyone, submodlib one",
        "kernels": kernels(),
        "versions": f"Python {platform.python_version()}, " + ", ".join(version(name) for name in PACKAGES),
        "commit": commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "rounds": f"{rounds}, interleaved, after two to warm up",
    }


def cpu() -> str:
    """Model and features that matter here."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return platform.processor() or platform.machine()
    text = path.read_text()
    fields = dict(re.findall(r"^(model name|cpu family|model|flags)\s*:\s*(.*)$", text, re.MULTILINE))
    wanted = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile")
    features = [name for name in wanted if name in fields.get("flags", "").split()]
    numbers = f"family {fields.get('cpu family', '?')} model {fields.get('model', '?')}"
    return f"{fields.get('model name', platform.machine())}, {numbers}, {', '.join(features)}"


def name() -> str:
    """The CPU, as the name of a folder."""
    return re.sub(r"[^a-z0-9]+", "-", cpu().lower()).strip("-")


def caches() -> str:
    """Sizes of the data caches of core 0."""
    found = []
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        if (index / "type").read_text().strip() != "Instruction":
            found.append(f"L{(index / 'level').read_text().strip()} {(index / 'size').read_text().strip()}")
    return " ".join(found) or "caches unknown"


def memory() -> str:
    """Main memory."""
    if not hasattr(os, "sysconf"):
        return "memory unknown"
    return f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB"


def governor() -> str:
    """The frequency governor, where the system shows it (virtual machines do not)."""
    path = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    return path.read_text().strip() if path.exists() else "unknown"


def huge_pages() -> str:
    """Mode of transparent huge pages; unless it is `always`, features lie in ordinary pages."""
    path = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    return path.read_text().split("[")[1].split("]")[0] if path.exists() else "unknown"


def kernels() -> str:
    """Instruction set in use and the compiler, from the extension itself."""
    if importlib.util.find_spec("mrtkern._C") is None:
        return "none: the PyTorch reference runs"
    from mrtkern import _C

    return f"{_C.isa()}, built with {_C.built_with()}"


def version(name: str) -> str:
    """Name and version of an installed package."""
    try:
        return f"{name} {importlib.metadata.version(name)}"
    except importlib.metadata.PackageNotFoundError:
        return f"{name} not installed"


def commit() -> str:
    """Revision of the sources, and whether they were changed since."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        name = git("rev-parse", "--short=12", "HEAD")
    except FileNotFoundError:  # no git here
        name = ""
    if not name:
        return "none"
    is_changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!bench/RESULTS.md")
    return name + (", with changes" if is_changed else "")

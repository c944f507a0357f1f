"""Compiles every CUDA kernel and tabulates what ptxas says of it: registers, shared memory, stack, spills.

    python tools/ptxas.py [FILE.cu ...]

Prints the table, writes it to build/ptxas.txt, and fails where a kernel spills registers or has a stack
frame: an array that does not fit into registers makes a kernel several times slower, silently.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ARCHITECTURES = ["sm_80", "sm_90"]
FLAGS = ["-std=c++17", "-O3", "-DNDEBUG", "--expt-relaxed-constexpr", "-Xptxas", "-v"]  # as in CMakeLists.txt
ENTRY = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for '(?P<arch>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes"
    r" spill loads.*?"
    r"Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)
HEADER = ("kernel", "arch", "registers", "shared", "stack", "spills")


def find_nvcc():
    folders = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if name in os.environ]
    path = os.pathsep.join([os.environ.get("PATH", ""), *(f"{folder}/bin" for folder in folders)])
    return shutil.which("nvcc", path=path)


def compile_kernels(nvcc, source, arch):
    """ptxas' words on one file for one architecture."""
    with tempfile.TemporaryDirectory() as folder:
        command = [nvcc, *FLAGS, f"-arch={arch}", "-cubin", "-o", f"{folder}/kernels.cubin", str(source)]
        result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"{' '.join(command)}\n{result.stderr}")
    return result.stderr


def readable(names):
    """Mangled names as source has them, without parameters and namespaces."""
    if shutil.which("c++filt"):
        text = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True).stdout
        names = text.splitlines()
    names = [re.split(r"(?<=>)\((?!anonymous)", name)[0] for name in names]
    return [re.sub(r"gmfast::|device_level::|\(anonymous namespace\)::|^void ", "", name) for name in names]


def table(logs):
    """Rows of HEADER's columns."""
    entries = [match for log in logs for match in ENTRY.finditer(log)]
    rows = []
    for entry, name in zip(entries, readable([entry["name"] for entry in entries]), strict=True):
        shared = re.search(r"(\d+) bytes smem", entry["rest"])
        spills = int(entry["stores"]) + int(entry["loads"])
        static = int(shared[1]) if shared else 0
        rows.append((name, entry["arch"], int(entry["registers"]), static, int(entry["stack"]), spills))
    return sorted(rows)


def main():
    nvcc = find_nvcc()
    if nvcc is None:
        sys.exit("ptxas.py needs nvcc, which is neither on PATH nor in CUDA_HOME: nothing was checked.")
    sources = [Path(name) for name in sys.argv[1:]] or sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
    jobs = [(nvcc, source, arch) for source in sources for arch in ARCHITECTURES]
    with ThreadPoolExecutor(2) as pool:
        rows = table(pool.map(lambda job: compile_kernels(*job), jobs))

    width = max(len(row[0]) for row in rows)
    lines = [
        f"{name:{width}}  {arch:5} {a:>9} {b:>6} {c:>5} {d:>6}" for name, arch, a, b, c, d in [HEADER, *rows]
    ]
    failed = [row for row in rows if row[4] or row[5]]
    lines.append(
        f"{len(rows)} kernels, {len(failed)} with a stack frame or spills; shared: bytes, static only"
    )
    text = "\n".join(lines)
    print(text)
    (ROOT / "build").mkdir(exist_ok=True)
    (ROOT / "build" / "ptxas.txt").write_text(text + "\n")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()

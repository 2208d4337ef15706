#!/usr/bin/env python3
"""Fails on an include that the layers forbid, and on CUDA headers outside .cu and .cuh files.

A room may include itself and the rooms named here; an op may include core, cuda and the ops in its
depends.txt. CMake links the same (CMakeLists.txt), so a forbidden include that happens to compile
still fails here.
"""
import pathlib
import re
import sys

ALLOWED = {
    "core": set(),
    "cuda": {"core"},
    "json": {"core"},
    "io": {"core", "json"},
    "text": {"core", "json"},
    "comm": {"core"},
    "systolic": {"core"},
    "ops": {"core", "cuda"},
    "geometry": {"core", "cuda", "ops"},
    "models": {"core", "cuda", "ops", "io"},
    "train": {"core", "cuda", "ops", "json", "io", "text", "models", "comm"},
}
# A room's tests may use these as oracles.
TESTS_ALSO = {"systolic": {"ops"}}
INCLUDE = re.compile(r'^\s*#\s*include\s*"flashloom/([^"]+)"', re.M)
CUDA_INCLUDE = re.compile(r'^\s*#\s*include\s*[<"](cuda|cublas|cudnn|nccl|nvrtc)', re.M)


def op_dependencies(folder: pathlib.Path) -> set:
    listing = folder / "depends.txt"
    return set(listing.read_text().split()) if listing.exists() else set()


def main() -> int:
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else ".") / "flashloom"
    faults = []
    for path in sorted(root.rglob("*")):
        if path.suffix not in {".h", ".cc", ".cu", ".cuh", ".in"}:
            continue
        parts = path.relative_to(root).parts
        room, text = parts[0], path.read_text()
        allowed = ALLOWED[room] | {room}
        if re.search(r"_test\.\w+$", path.name):
            allowed |= TESTS_ALSO.get(room, set())
        for target in INCLUDE.findall(text):
            to = target.split("/")
            if to[0] not in allowed:
                faults.append(f"{path}: {room} may not include {to[0]} ({target})")
            elif room == "ops" and to[0] == "ops" and to[1] != parts[1]:
                if to[1] not in op_dependencies(root / "ops" / parts[1]):
                    faults.append(f"{path}: op {parts[1]} does not name {to[1]} in depends.txt")
        if path.suffix in {".h", ".cc"} and CUDA_INCLUDE.search(text):
            faults.append(f"{path}: only .cu and .cuh files include CUDA headers")
    print("\n".join(faults) if faults else "layers: no forbidden include")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""Reads what the CUDA compiler made, on a machine that cannot run it.

Usage: check_cuda_build.py LOG BUILD_FOLDER [CUOBJDUMP]

Fails on
- registers spilled to memory (ptxas -v in the log),
- ptxas's notes C75xx: it serialised wgmma, or ignored setmaxnreg,
- in objects of a folder sm90/: a kernel of matrix products that holds no HGMMA, and one that holds
  HMMA (the older, slower tensor core instructions),
- there and in those of decode/: shapes of HGMMA other than 64 x 32 to 256 x 16 (8 for tf32) with
  sums in f32. A narrower product than was asked for has halved such kernels before
  (Dao-AILab/flash-attention #1432).
"""
import pathlib
import re
import subprocess
import sys

FUNCTION = re.compile(r"(?:Compiling entry function|Function properties for) '?([\w$]+)'?")
SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")
NOTE = re.compile(r"\(C75\d\d\)|\bC75\d\d\b")
SASS_FUNCTION = re.compile(r"^\s*Function : (\S+)")
HGMMA = re.compile(r"\bHGMMA\.(\d+)x(\d+)x(\d+)\.(\S+)")
# Kernels that must use wgmma: all but those that surround them, and one whose warps each see other
# keys, so that products of four warps would do a third more.
PRODUCTS = re.compile(r"attention_(forward|backward)_"
                      r"(?!(lists_)?(prepare|finish|convert|sinks|ranks))\w*kernel")
BY_WARP = re.compile(r"attention_forward_kernel_band")


def log_faults(log: str) -> tuple:
    faults, function, kernels = [], "", 0
    for line in log.splitlines():
        if found := FUNCTION.search(line):
            function = found[1]
            kernels += "Compiling entry function" in line
        if (found := SPILLS.search(line)) and (int(found[1]) or int(found[2])):
            faults.append(f"spills: {found[0]} in {function}")
        if NOTE.search(line):
            faults.append(f"note: {line.strip()}")
    return faults, kernels


def shape_fault(m: str, n: str, k: str, types: str) -> bool:
    return (m != "64" or not 32 <= int(n) <= 256 or k not in ("16", "8")
            or not types.startswith("F32"))


def object_faults(path: pathlib.Path, sass: str) -> tuple:
    faults, function, seen = [], "", {}
    for line in sass.splitlines():
        if found := SASS_FUNCTION.match(line):
            function = found[1]
            seen[function] = [0, 0]
        elif found := HGMMA.search(line):
            seen[function][0] += 1
            if shape_fault(*found.groups()):
                faults.append(f"shape: {found[0]} in {function} ({path.name})")
        elif re.search(r"\bHMMA\.", line):
            seen[function][1] += 1
    for function, (wgmma, mma) in seen.items():
        expected = (wgmma == 0 and mma > 0 if BY_WARP.search(function) else wgmma > 0 and mma == 0)
        if PRODUCTS.search(function) and not expected:
            faults.append(f"products: {wgmma} HGMMA and {mma} HMMA in {function} ({path.name})")
    return sorted(set(faults)), sum(wgmma for wgmma, _ in seen.values())


def main() -> int:
    log, build = pathlib.Path(sys.argv[1]).read_text(errors="replace"), pathlib.Path(sys.argv[2])
    cuobjdump = sys.argv[3] if len(sys.argv) > 3 else "cuobjdump"
    faults, kernels = log_faults(log)
    objects = [path for path in sorted(build.rglob("*.cu.o"))
               if path.parent.name in ("sm90", "decode")]
    products = 0
    for path in objects:
        sass = subprocess.run([cuobjdump, "-sass", str(path)], capture_output=True, text=True,
                              check=True).stdout
        found, count = object_faults(path, sass)
        faults += found
        products += count
    if kernels == 0 or (objects and products == 0):
        faults.append(f"nothing to check: {kernels} kernels in the log, {products} HGMMA in "
                      f"{len(objects)} objects of sm90/ and decode/")
    for fault in faults:
        print(fault)
    print(f"CUDA code: {kernels} kernels compiled, {products} HGMMA in {len(objects)} objects, "
          f"{len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())

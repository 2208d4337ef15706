#!/usr/bin/env python3
"""Prints which files of bench/results measured code that has changed since.

A result names the folders that it measured and their git tree hashes: `flashloom/cuda` 0a9e4fe….
Measuring needs hardware that this machine may not have, so this only tells.
"""
import pathlib
import re
import subprocess
import sys

NAMED = re.compile(r"`(flashloom/[\w/]+)`\s+([0-9a-f]{12,40})\b")


def tree_hash(folder: str) -> str:
    found = subprocess.run(["git", "rev-parse", f"HEAD:{folder}"], capture_output=True, text=True)
    return found.stdout.strip() if found.returncode == 0 else "gone"


def main() -> int:
    results = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "bench/results")
    named, stale = 0, []
    for path in sorted(results.glob("*.md")):
        trees = dict(NAMED.findall(path.read_text()))
        named += bool(trees)
        changed = [folder for folder, old in trees.items() if not tree_hash(folder).startswith(old)]
        if changed:
            stale.append(f"stale: {path} ({', '.join(changed)} changed since)")
    print("\n".join(stale) if stale else f"results: {named} name the trees they measured, none stale")
    return 0


if __name__ == "__main__":
    sys.exit(main())

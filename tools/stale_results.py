#!/usr/bin/env python3
"""Prints which parts of the files of bench/results measured code that has changed since.

A part (what a heading starts) names the folders that it measured and their git tree hashes:
`flashloom/cuda` 0a9e4fe…. It is stale where it names a folder, but not the hash that it has now.
Measuring needs hardware that this machine may not have, so this only tells.
"""
import pathlib
import re
import subprocess
import sys

NAMED = re.compile(r"`(flashloom/[\w/]+)`\s+([0-9a-f]{12,40})\b")
HEADING = re.compile(r"^#+ +(.*)$", re.M)


def tree_hash(folder: str) -> str:
    found = subprocess.run(["git", "rev-parse", f"HEAD:{folder}"], capture_output=True, text=True)
    return found.stdout.strip() if found.returncode == 0 else "gone"


def parts(text: str):
    """Headings with the text up to the next one."""
    heads = list(HEADING.finditer(text))
    for head, after in zip(heads, heads[1:] + [None]):
        yield head.group(1), text[head.end():after.start() if after else len(text)]


def main() -> int:
    results = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "bench/results")
    named, stale = 0, []
    for path in sorted(results.glob("*.md")):
        for heading, text in parts(path.read_text()):
            trees = {}
            for folder, old in NAMED.findall(text):
                trees.setdefault(folder, []).append(old)
            named += bool(trees)
            changed = [folder for folder, hashes in trees.items()
                       if not any(tree_hash(folder).startswith(old) for old in hashes)]
            if changed:
                stale.append(f"stale: {path}, {heading}: {', '.join(changed)} changed since")
    print("\n".join(stale) if stale else f"results: {named} name the trees they measured, none stale")
    return 0


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""Fails on a link between the repository's Markdown files that leads nowhere.

check_links.py [ROOT]. A link names a file, or a heading as GitHub numbers them: lower case, spaces
as hyphens, other signs left out. Links to other hosts are not followed.
"""
import pathlib
import re
import subprocess
import sys

LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ +(.*)$", re.M)
FENCE = re.compile(r"^```.*?^```", re.M | re.S)


def anchor(heading: str) -> str:
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


def main() -> int:
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else ".").resolve()
    listed = subprocess.run(["git", "ls-files", "*.md"], cwd=root, text=True, check=True,
                            capture_output=True).stdout.split()
    texts = {(root / name).resolve(): FENCE.sub("", (root / name).read_text()) for name in listed}
    anchors = {path: {anchor(heading) for heading in HEADING.findall(text)}
               for path, text in texts.items()}
    faults = []
    for path, text in texts.items():
        for link in LINK.findall(text):
            if re.match(r"[a-z]+:", link):
                continue
            name, _, heading = link.partition("#")
            target = (path.parent / name).resolve() if name else path
            if not target.exists():
                faults.append(f"{path.relative_to(root)}: {link}: no such file")
            elif heading and heading not in anchors.get(target, {heading}):
                faults.append(f"{path.relative_to(root)}: {link}: no such heading")
    for fault in faults:
        print(fault)
    print(f"links: {len(texts)} files, {len(faults)} dead")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())

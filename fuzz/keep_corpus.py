#!/usr/bin/env python3
"""Merges build/fuzz/corpus into fuzz/corpus and keeps it small, up to 60 files and 64 kB a target: one
after another the input that adds most coverage for its size (a block of a disk more, so that tiny
ones do not always win). Findings and seeds always stay, and count."""
import pathlib
import re
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
FILES, BYTES, BLOCK = 60, 64 << 10, 512


def features_of(program, sources):
    """libFuzzer's features (edges and how often they were taken) of each input."""
    with tempfile.TemporaryDirectory() as folder:
        control = pathlib.Path(folder) / "control"
        (pathlib.Path(folder) / "merged").mkdir()
        subprocess.run([program, "-set_cover_merge=1", f"-merge_control_file={control}",
                        "-timeout=120", "-close_fd_mask=3", f"{folder}/merged", *sources],
                       check=True, capture_output=True)
        lines = control.read_text(errors="replace").splitlines()
    count = int(lines[0])
    files = [pathlib.Path(line) for line in lines[2:2 + count]]
    features = {path: set() for path in files}
    for line in lines[2 + count:]:
        if found := re.match(r"FT (\d+) ?(.*)", line):
            features[files[int(found[1])]] = set(map(int, found[2].split()))
    return features


def is_fixed(path):
    return path.name.startswith(("seed-", "finding-"))


def main() -> int:
    work = ROOT / "build" / "fuzz"
    for program in sorted((work / "bin").glob("fuzz_*")):
        name = program.name.removeprefix("fuzz_")
        kept = ROOT / "fuzz" / "corpus" / name
        kept.mkdir(parents=True, exist_ok=True)
        sources = [path for path in (work / "corpus" / name, work / "seeds" / name, kept)
                   if path.exists()]
        features = features_of(program, sources)
        covered = set().union(*(found for path, found in features.items()
                                if is_fixed(path) and path.parent == kept))
        chosen, total = [], 0
        while len(chosen) < FILES:
            gains = {path: len(found - covered) / (path.stat().st_size + BLOCK)
                     for path, found in features.items()
                     if total + path.stat().st_size <= BYTES and path not in chosen}
            best = max(gains, key=gains.get, default=None)
            if best is None or gains[best] == 0:
                break
            chosen.append(best)
            total += best.stat().st_size
            covered |= features[best]
        contents = {path.name[:12]: path.read_bytes() for path in chosen if not is_fixed(path)}
        for path in kept.iterdir():
            if not is_fixed(path):
                path.unlink()
        for file, content in contents.items():
            (kept / file).write_bytes(content)
        everything = len(set().union(*features.values()))
        print(f"{name}: {len(covered)} of {everything} features in {len(list(kept.iterdir()))} of "
              f"{len(features)} inputs", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

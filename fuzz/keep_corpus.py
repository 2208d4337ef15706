#!/usr/bin/env python3
"""Merges build/fuzz/corpus into fuzz/corpus and keeps it small: of the inputs that libFuzzer's merge
says add coverage, the smallest, up to 60 files and 64 kB a target; findings and seeds always stay."""
import pathlib
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
FILES, BYTES = 60, 64 << 10


def main() -> int:
    work = ROOT / "build" / "fuzz"
    for program in sorted((work / "bin").glob("fuzz_*")):
        name = program.name.removeprefix("fuzz_")
        kept = ROOT / "fuzz" / "corpus" / name
        kept.mkdir(parents=True, exist_ok=True)
        sources = [path for path in (work / "corpus" / name, work / "seeds" / name, kept)
                   if path.exists()]
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run([program, "-merge=1", "-timeout=120", "-close_fd_mask=3", folder, *sources],
                           check=True, capture_output=True)
            merged = sorted(pathlib.Path(folder).iterdir(), key=lambda path: path.stat().st_size)
            for path in kept.iterdir():
                if not path.name.startswith(("seed-", "finding-")):
                    path.unlink()
            total = 0
            for count, path in enumerate(merged):
                total += path.stat().st_size
                if count >= FILES or total > BYTES:
                    break
                shutil.copy(path, kept / path.name[:12])
        print(f"{name}: {len(merged)} with coverage of their own, {len(list(kept.iterdir()))} kept")
    return 0


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""Writes the demo's data: Debian's long package descriptions with their one-line synopses.

Usage: debian_synopses.py FOLDER [--train 480] [--held 64]

Reads the English translations that `apt-get -o Acquire::Languages=en update` leaves under
/var/lib/apt/lists. Packages (libraries left out, descriptions of 81 to 499 characters) are ordered
by the SHA-256 of their names, so that every machine gets the same rows: the first `held` are held
out, the next `train` are trained on. Each row is a conversation of one question and one answer.
"""
import argparse
import glob
import hashlib
import json
import pathlib
import subprocess
import sys

LISTS = "/var/lib/apt/lists/*bookworm_main_i18n_Translation-en*"
QUESTION = "Write a one-line synopsis of this software package.\n"


def stanzas():
    files = glob.glob(LISTS)
    if not files:
        sys.exit(f"no file matches {LISTS}: run `apt-get -o Acquire::Languages=en update` first")
    text = subprocess.run(["/usr/lib/apt/apt-helper", "cat-file", *files], check=True,
                          stdout=subprocess.PIPE).stdout.decode()
    yield from text.split("\n\n")


def description(stanza):
    """(package, synopsis, long description in one line), or None."""
    name = synopsis = None
    body = []
    for line in stanza.split("\n"):
        if line.startswith("Package: "):
            name = line[len("Package: "):]
        elif line.startswith("Description-en: "):
            synopsis = line[len("Description-en: "):]
        elif synopsis is not None and line.startswith(" "):
            body.append("" if line == " ." else line)
        elif synopsis is not None:
            break
    if not name or not synopsis or not body:
        return None
    return name, synopsis, " ".join(" ".join(body).split())


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--train", type=int, default=480)
    parser.add_argument("--held", type=int, default=64)
    options = parser.parse_args()

    rows = {}
    for name, synopsis, body in filter(None, map(description, stanzas())):
        if not name.startswith("lib") and 80 < len(body) < 500:
            rows[name] = [{"role": "user", "content": QUESTION + body},
                          {"role": "assistant", "content": synopsis}]
    names = sorted(rows, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    if len(names) < options.held + options.train:
        sys.exit(f"found {len(names)} descriptions, need {options.held + options.train}")
    options.folder.mkdir(parents=True, exist_ok=True)
    for part, chosen in (("held", names[:options.held]),
                         ("train", names[options.held:options.held + options.train])):
        with open(options.folder / f"{part}.jsonl", "w", encoding="utf-8") as file:
            for name in chosen:
                file.write(json.dumps({"messages": rows[name]}, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()

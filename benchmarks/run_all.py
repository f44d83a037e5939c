"""Runs the benchmarks one after another and writes what they print into README.md.

    python benchmarks/run_all.py [decode search_speed ...]

Each is in the README between `<!-- NAME -->` and `<!-- end -->`.
"""

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from common import ROOT

from utils import atomic_write, say

NAMES = (
    "decode", "small_pictures", "connections", "overlap", "search_speed", "step", "first_step",
    "epoch_estimate",
)  # fmt: skip
# A T4 cannot be measured here: give its rate anew when one was.
ARGUMENTS = {
    "epoch_estimate": ["--step-rate", "400", "--step-source", "an assumption: 800 for two T4s"]
}
README = Path(__file__).parent / "README.md"


def run(name):
    """Runs one script; gives what it printed, with the time it took and the machine's load."""
    load, begin = os.getloadavg()[0], time.perf_counter()
    command = [sys.executable, f"benchmarks/{name}.py", *ARGUMENTS.get(name, [])]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    seconds = time.perf_counter() - begin
    print(done.stdout, flush=True)
    after = os.getloadavg()[0]
    note = f"Took {seconds:.0f} s; load {load:.1f} before, {after:.1f} after."
    return f"{format_output(done.stdout)}\n\n{note}"


def format_output(text):
    """Turns a script's output into Markdown: verdicts as a list, single blank lines."""
    lines = [line for line in text.splitlines() if not line.startswith("Machine:")]
    text = "\n".join(lines)
    text = re.sub(r"^(reached|MISSED): ", r"- \1: ", text, flags=re.MULTILINE)
    text = re.sub(r"^((?!- ).+)\n- ", r"\1\n\n- ", text, flags=re.MULTILINE)
    text = re.sub(r"^(- .+)\n(?!- |\n)", r"\1\n\n", text, flags=re.MULTILINE)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def replace(readme, name, text):
    """Puts a text between the marks of a name."""
    pattern = rf"(<!-- {name} -->\n).*?(<!-- end -->)"
    if not re.search(pattern, readme, re.DOTALL):
        raise ValueError(f"{README}: no <!-- {name} --> ... <!-- end -->")
    return re.sub(pattern, lambda found: f"{found[1]}\n{text}\n\n{found[2]}", readme, flags=re.S)


def main():
    """Runs the named benchmarks, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}")
    for name in parser.parse_args().names or NAMES:
        say(f"benchmarks/{name}.py")
        text = run(name)
        readme = replace(README.read_text(), name, text)
        with atomic_write(README) as temporary:
            temporary.write_text(readme)


if __name__ == "__main__":
    main()

"""The generated scripts one after another in an emulated Kaggle, against the direct run.

    make demo && python benchmarks/kernels_on_demo.py --expected output/demo
    python benchmarks/kernels_on_demo.py --session-hours 0.005 \\
        --recognition-args "--epochs 9 --image-size 32 --backbone mobilenet_v2 --train-shards 0:3"

With --recipe strong it is the longer chain, and nearest.py runs directly, too.

Recognition is stopped once by its time budget, so that a second session continues from the first
one's output. Without --expected the scripts run directly first, with the same arguments. With
--shrink 256 two kernels come first and make the world small; its pictures are smaller than that and
stay byte for byte, so that the results must still be equal.
"""

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import ROOT

import kernels
from demo.world import build_world
from on_kaggle.packing import REPORT
from on_kaggle.results import CHALLENGES, find_submitters
from on_kaggle.states import read_built
from utils import say


def build(folder, args, max_hours):
    """Builds the kernels for the demo, with what is on our command line."""
    words = ["--user", "somebody", "--kernels", str(folder), "--max-hours", str(max_hours)]
    words += ["--recognition-args", f"--demo {args.recognition_args}", "--retrieval-args", "--demo"]
    words += ["--shrink", str(args.shrink), "--shrink-args", "--demo"] if args.shrink else []
    words += ["--recipe", args.recipe, "--nearest-args", "--demo"] if args.recipe else []
    with contextlib.redirect_stdout(None):
        kernels.main(["build", *words])


def run_script(command, log, **kwargs):
    """Runs a Python script with its words going to a file; ends this process if it fails."""
    with open(log, "w") as file:
        done = subprocess.run([sys.executable, *command], stdout=file, stderr=file, **kwargs)
    if done.returncode:
        print(*log.read_text().splitlines()[-20:], sep="\n", file=sys.stderr)
        sys.exit(f"{command[0]} ended with exit code {done.returncode}; all it said is in {log}")


def run_kernel(folder, prefix):
    """Runs one session of a built kernel, in empty folders as Kaggle gives them; gives its output.

    The prefix stands for /kaggle; `outputs/` beside what Kaggle has there keeps the outputs.
    """
    metadata = json.loads((folder / "kernel-metadata.json").read_text())
    working, inputs = prefix / "working", prefix / "input"
    for empty in (working, inputs):
        shutil.rmtree(empty, ignore_errors=True)
        empty.mkdir()
    for source in metadata["kernel_sources"]:
        if (prefix / "outputs" / source).exists():
            mount = inputs / "notebooks" / source
            shutil.copytree(prefix / "outputs" / source, mount, copy_function=os.link)
    environment = {**os.environ, "KAGGLE_PREFIX": str(prefix), "KAGGLE_KERNEL_RUN_TYPE": "Batch"}
    begin = time.perf_counter()
    log = prefix / f"{folder.name}.log"
    run_script([folder / metadata["code_file"]], log, cwd=working, env=environment)
    seconds = time.perf_counter() - begin
    files = [path for path in working.rglob("*") if path.is_file()]
    size_bytes = sum(path.stat().st_size for path in files)
    report = json.loads((working / REPORT).read_text())
    state = "finished" if report["finished"] else "to be continued"
    print(
        f"{folder.name:<12} {seconds:6.1f} s {len(files):4} files {size_bytes:12,} bytes  {state}",
        flush=True,
    )
    output = prefix / "outputs" / metadata["id"]
    shutil.rmtree(output, ignore_errors=True)
    shutil.copytree(working, output, copy_function=os.link)
    return output


def run_directly(folder, args, scratch):
    """Runs the scripts as `make demo` does; gives the folder of their results."""
    common = ["--demo", "--output", folder, "--scratch", scratch]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    recipe = ["--recipe", args.recipe] if args.recipe else []
    scripts = {"recognition": [*recipe, *args.recognition_args.split()]}
    scripts |= ({"nearest": []} if args.recipe else {}) | {"retrieval": []}
    for script, more in scripts.items():
        say(f"running {script}.py directly")
        run_script([ROOT / f"{script}.py", *common, *more], folder / f"{script}.log")
    return folder


def count_mini_epochs(output):
    """Counts the mini-epochs that a session of recognition left."""
    history = output / "history.csv"
    return len(history.read_text().splitlines()) - 1 if history.exists() else 0


def interrupt_recognition(prefix, args):
    """Runs sessions of recognition, each with more time, until one stops in the middle."""
    num_mini_epochs, max_hours = 0, args.session_hours
    while not num_mini_epochs:
        build(prefix / "built-short", args, max_hours)
        output = run_kernel(prefix / "built-short" / "recognition", prefix)
        num_mini_epochs = count_mini_epochs(output)
        max_hours *= 1.5
    if json.loads((output / REPORT).read_text())["finished"]:
        sys.exit("recognition was not stopped in the middle; lower --session-hours")
    say(f"recognition stopped with {num_mini_epochs} mini-epochs done")


def main():
    """Runs the kernels and compares, as the module's docstring says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--expected", type=Path, help="output folder of the same run without Kaggle")
    add("--recipe", choices=("strong",), help="the longer chain")
    add("--recognition-args", default="", help="more than --demo, to be quicker")
    add("--session-hours", type=float, default=0.01, help="of recognition's first session")
    add("--shrink", type=int, metavar="N", help="make the world small first, to N pixels")
    add("--prefix", type=Path, help="folder to keep that stands for /kaggle")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kaggle-") as temporary:
        prefix = (args.prefix or Path(temporary)).resolve()
        (prefix / "tmp").mkdir(parents=True, exist_ok=True)
        shutil.rmtree(prefix / "outputs", ignore_errors=True)
        build_world(prefix / "tmp" / "demo-world")  # once for all
        expected = args.expected or run_directly(prefix / "expected", args, prefix / "tmp")
        build(prefix / "built", args, 11)
        is_equal, built = True, read_built(prefix / "built")
        results = {names[-1]: CHALLENGES[key][0] for key, names in find_submitters(built).items()}
        for name in built:
            if name == "recognition":
                interrupt_recognition(prefix, args)
            output = run_kernel(prefix / "built" / name, prefix)
            if name in results:
                files = [folder / results[name] for folder in (output, expected)]
                is_equal &= files[0].read_bytes() == files[1].read_bytes()
    print("equal" if is_equal else "differs")
    sys.exit(not is_equal)


if __name__ == "__main__":
    main()

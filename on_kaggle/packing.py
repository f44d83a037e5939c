"""Kernels, each packed as one script.

`kaggle kernels push` sends a single file: it carries all modules of the project that it needs.
"""

import base64
import contextlib
import hashlib
import importlib
import io
import json
import math
import re
import shlex
import textwrap
import zipfile
from dataclasses import asdict
from modulefinder import ModuleFinder
from pathlib import Path

from on_kaggle.plan import MACHINES, MAX_TPU_HOURS
from utils import ExpectedError, atomic_write, say

ROOT = Path(__file__).resolve().parent.parent
ENTRIES = ("recognition", "nearest", "retrieval", "shrink")  # the scripts that kernels run
SET_FOR_EACH = (
    "--part", "--parts", "--pixels", "--split", "--max-hours", "--output", "--help", "-h",
)  # fmt: skip
OF_SEVERAL_MACHINES = ("--machine", "--machines", "--scheduler")
REPORT = "kernel.json"  # what a kernel leaves beside its results, to know it by
CHAIN_FILE = "chain.json"  # in the folder of built kernels: the table below, as it was built

SCRIPT = '''\
"""$title$: built by kernels.py; change the sources and build again."""

import base64
import importlib
import io
import json
import os
import sys
import tempfile
import time
import zipfile
from pathlib import Path

FACTS = $facts$


def take_tpu():
    """Has Keras run on JAX; ends in one line where there is no TPU, instead of after hours."""
    os.environ["KERAS_BACKEND"] = "jax"
    try:
        import jax

        device = jax.default_backend()
    except (ImportError, RuntimeError) as error:
        device = f"{error}"
    if device != "tpu":
        sys.exit(
            f"error: no TPU here (JAX: {device}); expected the TPU that this kernel asked for; "
            "choose it on the kernel's page, under Settings, Accelerator, and save a version there"
        )


def run():
    """Unpacks the modules outside of the output folder, runs the script and reports on it."""
    facts, output, started = FACTS, Path.cwd(), time.time()
    with tempfile.TemporaryDirectory(prefix="landmarks-") as folder:
        zipfile.ZipFile(io.BytesIO(base64.b64decode(ARCHIVE))).extractall(folder)
        sys.path.insert(0, folder)
        utils = importlib.import_module("utils")
        shown = [utils.masked(word) for word in facts["arguments"]]
        utils.say(
            f"kernel {facts['kernel']}, source {facts['source']}, build {facts['build']}: "
            + " ".join([facts["entry"] + ".py", *shown])
        )
        if facts.get("device") == "tpu":
            take_tpu()
        names, errors = (facts["entry"], "runs.command_line"), []
        entry, command_line = map(importlib.import_module, names)

        def main():
            try:
                entry.main(facts["arguments"])
            except utils.ExpectedError as error:
                errors.append(str(error))
                raise

        try:
            command_line.run_command_line(main)
        except SystemExit as stop:
            # Kaggle may throw the output of a failed session away, and with it hours of work: where
            # the next session can go on, this one ends cleanly.
            kept = ("checkpoint", "descriptors", "features", "shrink.csv")
            if stop.code and not (errors and any(any(output.glob(name)) for name in kept)):
                raise
    paths = sorted(path for path in output.rglob("*") if path.is_file())
    files = {path.relative_to(output).as_posix(): path.stat().st_size for path in paths}
    files.pop("$report$", None)
    report = {
        "arguments": shown, "started": started, "ended": time.time(),
        "finished": facts["result"] in files and not errors,
        "error": errors[0] if errors else "", "files": files,
    }
    Path(output, "$report$").write_text(json.dumps(facts | report, indent=2) + "\\n")


ARCHIVE = """
$archive$
"""

if __name__ == "__main__":
    run()
'''


def find_modules(entry, with_demo=False):
    """Reads the modules that a script imports: dict, path -> source; demo/ only if asked for."""
    finder = ModuleFinder([str(ROOT)], excludes=[] if with_demo else ["demo"])
    finder.run_script(str(ROOT / f"{entry}.py"))
    files = {Path(one.__file__) for one in finder.modules.values() if one.__file__}
    paths = sorted(path.relative_to(ROOT).as_posix() for path in files)
    return {path: (ROOT / path).read_bytes() for path in paths}


def source_version(modules):
    """Names the version of the modules: the last release and 12 characters of their hash."""
    digest = hashlib.sha256()
    for path, source in modules.items():
        digest.update(b"%s %d\n%s" % (path.encode(), len(source), source))
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    return f"{re.search('^## (.*)', text, re.MULTILINE)[1]}+{digest.hexdigest()[:12]}"


def pack(modules):
    """Packs modules as lines of base64; the same modules give the same text at any time."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path, source in modules.items():
            member = zipfile.ZipInfo(path, (1980, 1, 1, 0, 0, 0))
            member.create_system = 3
            archive.writestr(member, source, zipfile.ZIP_DEFLATED, 9)
    return textwrap.fill(base64.b64encode(buffer.getvalue()).decode(), 100)


def write_kernels(kernels, extra, args):
    """Writes folders with metadata and script, and the table of all kernels (name -> `Kernel`)."""
    folder = args.kernels
    with contextlib.suppress(OSError):  # written last: half a build is none
        Path(folder, CHAIN_FILE).unlink()
    packed = {}  # entry -> (archive, version)
    for entry in sorted({kernel.entry for kernel in kernels.values()}):
        modules = find_modules(entry, "--demo" in extra[entry])
        packed[entry] = pack(modules), source_version(modules)
    for kernel in kernels.values():
        archive, version = packed[kernel.entry]
        facts = _facts(kernel, version, extra, args)
        lines = "".join(f"    {key!r}: {value!r},\n" for key, value in facts.items())
        script = SCRIPT.replace("$report$", REPORT).replace("$title$", kernel.title)
        script = script.replace("$facts$", f"{{\n{lines}}}").replace("$archive$", archive)
        metadata = _metadata(kernel, kernels, args) | {"build": facts["build"]}
        _write(Path(folder, kernel.name, metadata["code_file"]), script)
        _write_json(Path(folder, kernel.name, "kernel-metadata.json"), metadata)
        print(Path(folder, kernel.name))
    _write_json(Path(folder, CHAIN_FILE), [asdict(kernel) for kernel in kernels.values()])
    say(f"{len(kernels)} kernels; push with: python kernels.py run")


def _facts(kernel, version, extra, args):
    """Gives what a kernel knows of itself; `build` tells it from others."""
    max_hours = min(args.max_hours, MAX_TPU_HOURS if kernel.machine == "tpu" else math.inf)
    budget = [] if kernel.machine == "cpu" else ["--max-hours", f"{max_hours:g}"]
    facts = {
        "kernel": kernel.name, "entry": kernel.entry,
        "arguments": [*kernel.arguments, *budget, *extra[kernel.entry]],
        "result": kernel.result, "source": version,
    }  # fmt: skip
    facts |= {"device": "tpu"} if kernel.machine == "tpu" else {}
    return facts | {"build": hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]}


def _write(path, text):
    with atomic_write(path, "kernels") as temporary:
        temporary.write_text(text, encoding="utf-8")


def _write_json(path, value):
    _write(path, json.dumps(value, indent=2) + "\n")


def _metadata(kernel, kernels, args):
    """Gives what kernel-metadata.json says of a kernel; the client ignores our `build` in it."""
    return {
        "id": f"{args.user}/{kernel.slug}", "title": kernel.title,
        "code_file": f"{kernel.slug}.py", "language": "python", "kernel_type": "script",
        "is_private": True, **MACHINES[kernel.machine], "competition_sources": [],
        "kernel_sources": [f"{args.user}/{kernels[name].slug}" for name in kernel.inputs],
        "enable_internet": kernel.downloads or not args.no_internet,
        "dataset_sources": args.dataset, "model_sources": args.model_source,
        "docker_image_pinning_type": "original",  # sessions that continue have one image
    }  # fmt: skip


def parse_arguments(entry, text):
    """Splits extra arguments for a script as a shell would, and lets its own parser check them."""
    setting = f"{entry}_args"
    try:
        arguments = shlex.split(text)
    except ValueError as error:
        told = f"{text!r}: {error}; expected arguments as in a shell"
        raise ExpectedError(told, setting) from error
    for word in arguments:
        flag = word.partition("=")[0]
        if flag in (*SET_FOR_EACH, *OF_SEVERAL_MACHINES) or word in ("merge", "vote"):
            why = "needs other machines" if flag in OF_SEVERAL_MACHINES else "is set"
            told = f"{entry}.py: {word} {why} for each kernel; expected other options"
            raise ExpectedError(told, setting)
    read_settings(entry, arguments)
    return arguments


def read_settings(entry, arguments):
    """Lets a script's own parser read its arguments; ExpectedError where it does not take them."""
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):  # where a parser says what is wrong
            return importlib.import_module(entry).parse_arguments(arguments)
    except SystemExit as stop:
        problem = told.getvalue().strip().removeprefix("error: ").partition("; see ")[0]
        problem = f"{entry}.py: {problem}; expected options that it takes"
        raise ExpectedError(problem, f"{entry}_args") from stop

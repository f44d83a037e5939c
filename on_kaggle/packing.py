"""The kernels of the Kaggle chain, and how each is packed into one script.

`kaggle kernels push` sends a single file: it carries all modules of the project that it needs.
"""

import ast
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
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from on_kaggle.kernel import MAX_OUTPUT_GB
from session import (
    RECOGNITION_SUBMISSION,
    RETRIEVAL_SUBMISSION,
    gallery_part_name,
    part_name,
    shrunk_name,
)
from utils import ExpectedError, atomic_write, say

ROOT = Path(__file__).resolve().parent.parent
ENTRIES = ("recognition", "nearest", "retrieval", "shrink")  # the scripts that kernels run
NUM_PARTS = 6
# Neither output nor time asks for more: 1.6 GB and 5 h in all of cleaned labels, 4.2 GB of all
# images, see docs/kaggle.md. Two GPU sessions run at once, and each part needs its start-up.
NUM_GALLERY_PARTS = 2
SET_FOR_EACH = (
    "--part", "--parts", "--pixels", "--split", "--max-hours", "--output", "--help", "-h",
)  # fmt: skip
REPORT = "kernel.json"  # what a kernel leaves beside its results, to know it by
CHAIN_FILE = "chain.json"  # in the folder of built kernels: the table below, as it was built
# Of Google Landmarks v2, from its page; "clean" are the train images of train_clean.csv.
NUM_IMAGES = {"full": 4_132_914, "clean": 1_580_470, "index": 761_757, "test": 117_577}
PICTURE_KB = 30.0  # of 256 pixels in quality 85: photographs 26, drawn ones 36 (benchmarks)
PIXELS_EXPONENT, QUALITY_GROWTH = 1.67, 1.04  # measured, from 224 to 256 and for a step of quality
TABLES_GB = 0.6  # metadata and ground truth, in each output
ROOM_TO_SPARE = 0.95  # of an output
MACHINES = {  # what kernel-metadata.json says of each
    "cpu": {"enable_gpu": False},
    "gpu": {"enable_gpu": True, "machine_shape": "NvidiaTeslaT4"},  # two of them
    "tpu": {"enable_gpu": False, "enable_tpu": True, "machine_shape": "TpuV5E8"},
}
MAX_TPU_HOURS = 8.0  # Kaggle is said to cut a TPU session after 9 hours


@dataclass(frozen=True)
class Kernel:
    """One kernel of the chain.

    Attributes:
        name: short name on our command line.
        title: Kaggle's title; the slug follows from it.
        entry: script to run.
        arguments: tuple, what makes the script do this kernel's share.
        result: the output file that a finished session has, and an unfinished one has not.
        inputs: tuple of the kernels whose outputs it reads. With itself among them, a session
            continues the one before.
        machine: one of MACHINES.
        downloads: whether it has internet even where the others are built without.
    """

    name: str
    title: str
    entry: str
    arguments: tuple
    result: str
    inputs: tuple
    machine: str = "gpu"
    downloads: bool = False

    @property
    def slug(self):
        return self.title.lower().replace(" ", "-")

    @property
    def has_gpu(self):
        return self.machine == "gpu"


PARTS = tuple(f"part-{part}" for part in range(NUM_PARTS))
_CHAIN = (
    Kernel(
        "recognition", "Landmark recognition", "recognition", (), RECOGNITION_SUBMISSION,
        inputs=("recognition",),
    ),
    *(
        Kernel(
            name, f"Landmark retrieval part {part}", "retrieval",
            ("--part", str(part), "--parts", str(NUM_PARTS)), part_name(part, NUM_PARTS),
            inputs=("recognition", name),
        )
        for part, name in enumerate(PARTS)
    ),
    Kernel(
        "merge", "Landmark retrieval merge", "retrieval", ("merge",), RETRIEVAL_SUBMISSION,
        inputs=PARTS, machine="cpu",
    ),
)  # fmt: skip
KERNELS = {kernel.name: kernel for kernel in _CHAIN}  # in the order to push
GALLERY = tuple(f"gallery-{part}" for part in range(NUM_GALLERY_PARTS))


def name_by_gallery(kernels, recipe, described_as):
    """Puts kernels behind recognition that name test and index images by the train images.

    Args:
        kernels: dict, name -> `Kernel`, those of 2019.
        recipe: of recognition, one with descriptors to name by.
        described_as: arguments that all kernels share that read queries.npz: it is of no use to
            another batch size, say.

    Returns:
        dict, name -> `Kernel`, in the order to push.
    """
    galleries = [
        Kernel(
            name, f"Landmark gallery part {part}", "nearest",
            ("--part", str(part), "--parts", str(NUM_GALLERY_PARTS), *described_as),
            gallery_part_name(part, NUM_GALLERY_PARTS), inputs=("recognition", name),
        )
        for part, name in enumerate(GALLERY)
    ]  # fmt: skip
    vote = Kernel(
        "vote", "Landmark vote", "nearest",
        ("vote", "--parts", str(NUM_GALLERY_PARTS), *described_as), RECOGNITION_SUBMISSION,
        inputs=("recognition", *GALLERY, "vote"), machine="cpu",
    )  # fmt: skip
    first = kernels["recognition"]
    first = replace(first, arguments=("--recipe", recipe, *first.arguments))
    parts = [
        # Without --names a gallery that is missing would go unnoticed.
        replace(
            kernels[name],
            arguments=(*kernels[name].arguments, "--names", "both", *described_as),
            inputs=("recognition", *GALLERY, name),
        )
        for name in PARTS
    ]
    return {one.name: one for one in (first, *galleries, vote, *parts, kernels["merge"])}


def train_on_tpu(kernels):
    """Lets recognition ask for a TPU: dict, name -> `Kernel`."""
    return kernels | {"recognition": replace(kernels["recognition"], machine="tpu")}


def shrink_first(kernels, words, num_parts):
    """Puts kernels without a GPU in front that make the data set small; the others read that.

    Args:
        kernels: dict, name -> `Kernel`.
        words: list, arguments of shrink.py that say how small, and what is kept.
        num_parts: kernels in front, each with its part of the data set.

    Returns:
        dict, name -> `Kernel`, in the order to push.
    """
    names = tuple(f"shrink-{part}" for part in range(num_parts))
    in_front = [
        Kernel(
            name, f"Landmark shrink part {part}", "shrink",
            (*words, "--part", str(part), "--parts", str(num_parts), "--copy-earlier"),
            shrunk_name(part, num_parts), inputs=(name,), machine="cpu", downloads=True,
        )
        for part, name in enumerate(names)
    ]  # fmt: skip
    readers = [
        replace(
            kernel,
            arguments=(*kernel.arguments, "--source", "inputs"),
            inputs=(*names, *kernel.inputs),
        )
        for kernel in kernels.values()
    ]
    return {kernel.name: kernel for kernel in (*in_front, *readers)}


def count_shrink_kernels(settings):
    """Gives how many kernels must share the data set so that none has too large an output.

    Args:
        settings: parsed command line of shrink.py.
    """
    if settings.demo or settings.source:  # a world of a few MB, or nobody knows what
        return 2
    splits = {"train": settings.labels, "index": "index", "test": "test"}
    wanted = splits.values() if settings.split == "all" else [splits[settings.split]]
    picture_kb = PICTURE_KB * (settings.pixels / 256) ** PIXELS_EXPONENT
    picture_kb *= QUALITY_GROWTH ** (settings.quality - 85)
    total_gb = sum(NUM_IMAGES[name] for name in wanted) * picture_kb / 1e6
    return math.ceil(total_gb / (ROOM_TO_SPARE * MAX_OUTPUT_GB - TABLES_GB))


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
    command = " ".join([facts["entry"] + ".py", *facts["arguments"]])
    print(
        f"kernel {facts['kernel']}, source {facts['source']}, build {facts['build']}: {command}",
        file=sys.stderr,
        flush=True,
    )
    if facts.get("device") == "tpu":
        take_tpu()
    with tempfile.TemporaryDirectory(prefix="landmarks-") as folder:
        zipfile.ZipFile(io.BytesIO(base64.b64decode(ARCHIVE))).extractall(folder)
        sys.path.insert(0, folder)
        names = (facts["entry"], "command_line", "utils")
        entry, command_line, utils = map(importlib.import_module, names)
        errors = []

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
            kept = ("checkpoint", "descriptors", "features", "shrink.csv", "penalised-part-*")
            if stop.code and not (errors and any(any(output.glob(name)) for name in kept)):
                raise
    paths = sorted(path for path in output.rglob("*") if path.is_file())
    files = {path.relative_to(output).as_posix(): path.stat().st_size for path in paths}
    files.pop("$report$", None)
    report = {
        **facts,
        "started": started,
        "ended": time.time(),
        "finished": facts["result"] in files and not errors,
        "error": errors[0] if errors else "",
        "files": files,
    }
    Path(output, "$report$").write_text(json.dumps(report, indent=2) + "\\n")


ARCHIVE = """
$archive$
"""

if __name__ == "__main__":
    run()
'''


def find_modules(entry, with_demo=False):
    """Finds the files of the modules that a script imports, itself included.

    Args:
        entry: name of the script.
        with_demo: whether to take along the demo's folder, which `--demo` alone imports.

    Returns:
        dict, path below the project's folder -> source.
    """
    files, waiting = {}, [entry]
    while waiting:
        name = waiting.pop()
        path = _path_of(name)
        if path is None or path in files or (name.split(".")[0] == "demo" and not with_demo):
            continue
        files[path] = (ROOT / path).read_bytes()
        waiting += [name.rpartition(".")[0]] if "." in name else []  # a package's own __init__
        for node in ast.walk(ast.parse(files[path])):
            if isinstance(node, ast.Import):
                waiting += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                waiting += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return dict(sorted(files.items()))


def _path_of(name):
    """Gives the file of a module or package of this project, relative to it, or None."""
    path = name.replace(".", "/")
    for candidate in (f"{path}.py", f"{path}/__init__.py"):
        if (ROOT / candidate).is_file():
            return candidate
    return None


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


@dataclass(frozen=True)
class Options:
    """What a build is given.

    Attributes:
        user: the owner on Kaggle.
        extra_arguments: dict, script -> list of extra arguments.
        max_hours: time budget of a GPU session.
        datasets: data sets to mount, as `owner/slug`.
        has_internet: whether the kernels may use it.
    """

    user: str
    extra_arguments: dict
    max_hours: float
    datasets: list
    has_internet: bool


def write_kernels(folder, kernels, options):
    """Writes a folder with metadata and script for each kernel, and the table of them all.

    Args:
        folder: where to.
        kernels: dict, name -> `Kernel`.
        options: `Options`.
    """
    packed = {}  # entry -> (archive, version)
    for entry in sorted({kernel.entry for kernel in kernels.values()}):
        modules = find_modules(entry, "--demo" in options.extra_arguments[entry])
        packed[entry] = pack(modules), source_version(modules)
    for kernel in kernels.values():
        archive, version = packed[kernel.entry]
        max_hours = min(options.max_hours, MAX_TPU_HOURS if kernel.machine == "tpu" else math.inf)
        budget = [] if kernel.machine == "cpu" else ["--max-hours", f"{max_hours:g}"]
        facts = {
            "kernel": kernel.name,
            "entry": kernel.entry,
            "arguments": [*kernel.arguments, *budget, *options.extra_arguments[kernel.entry]],
            "result": kernel.result,
            "source": version,
        }
        if kernel.machine == "tpu":
            facts["device"] = "tpu"
        facts["build"] = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]
        metadata = _metadata(kernel, kernels, options.user) | {
            "enable_internet": options.has_internet or kernel.downloads,
            "dataset_sources": options.datasets,
            "build": facts["build"],  # ours; the client ignores it
        }
        _write(Path(folder, kernel.name, metadata["code_file"]), _script(kernel, facts, archive))
        metadata_text = json.dumps(metadata, indent=2) + "\n"
        _write(Path(folder, kernel.name, "kernel-metadata.json"), metadata_text)
        print(Path(folder, kernel.name))
    table = [asdict(kernel) for kernel in kernels.values()]
    _write(Path(folder, CHAIN_FILE), json.dumps(table, indent=2) + "\n")
    say(f"{len(kernels)} kernels; push with: python kernels.py run")


def read_chain(folder):
    """Reads the table that `write_kernels` wrote: dict, name -> `Kernel`.

    Raises:
        OSError, ValueError, TypeError, AttributeError: it is not there or not as written.
    """
    table = json.loads(Path(folder, CHAIN_FILE).read_text(encoding="utf-8"))
    kernels = [
        Kernel(**{name: tuple(v) if isinstance(v, list) else v for name, v in row.items()})
        for row in table
    ]
    return {kernel.name: kernel for kernel in kernels}


def _write(path, text):
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _script(kernel, facts, archive):
    """Writes the one file of a kernel, which carries all modules."""
    lines = "".join(f"    {key!r}: {value!r},\n" for key, value in facts.items())
    script = SCRIPT.replace("$report$", REPORT).replace("$title$", kernel.title)
    return script.replace("$facts$", f"{{\n{lines}}}").replace("$archive$", archive)


def _metadata(kernel, kernels, user):
    """Gives what kernel-metadata.json says of a kernel, whatever the build's options."""
    return {
        "id": f"{user}/{kernel.slug}",
        "title": kernel.title,
        "code_file": f"{kernel.slug}.py",
        "language": "python",
        "kernel_type": "script",
        "is_private": True,
        **MACHINES[kernel.machine],
        "competition_sources": [],
        "kernel_sources": [f"{user}/{kernels[name].slug}" for name in kernel.inputs],
    }


def parse_arguments(entry, text):
    """Splits extra arguments for a script as a shell would, and lets its own parser check them.

    Raises:
        ExpectedError: the script does not take them.
    """
    setting = f"{entry}_args"
    try:
        arguments = shlex.split(text)
    except ValueError as error:
        raise ExpectedError(
            f"{text!r}: {error}; expected arguments as in a shell", setting
        ) from error
    for word in arguments:
        if word.partition("=")[0] in SET_FOR_EACH or word in ("merge", "vote"):
            raise ExpectedError(
                f"{entry}.py: {word} is set for each kernel; expected other options", setting
            )
    read_settings(entry, arguments)
    return arguments


def read_settings(entry, arguments):
    """Lets a script's own parser read its arguments, and gives what it made of them.

    Raises:
        ExpectedError: the script does not take them.
    """
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):  # where a parser says what is wrong
            return importlib.import_module(entry).parse_arguments(arguments)
    except SystemExit as stop:
        problem = told.getvalue().strip().removeprefix("error: ").partition("; see ")[0]
        raise ExpectedError(
            f"{entry}.py: {problem}; expected options that it takes", f"{entry}_args"
        ) from stop

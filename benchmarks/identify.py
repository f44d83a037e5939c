"""How well and how soon `identify.py` answers: photographs of test shards, as files of a person.

    python benchmarks/identify.py --source FOLDER --output OUTPUT [--photos 400]

OUTPUT is that of a finished `recognition.py`. Its threshold was chosen on Public rows of the ground
truth, so that only photographs of Private rows are asked about here.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import common
from common import ROOT, print_table

from data.landmarks import format_image_id
from data.sources import RECOGNITION_SOLUTION, Source
from data.submissions import read_recognition_solution
from data.tars import list_members


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", required=True, help="folder in the CVDF layout")
    parser.add_argument("--output", required=True, type=Path, help="of recognition.py")
    parser.add_argument("--photos", type=int, default=10_000, help="at most so many")
    return parser.parse_args()


def main():
    """Prints the tables, as the module's docstring says."""
    args = parse_arguments()
    common.print_machine("keras", "tensorflow", "pillow")
    with tempfile.TemporaryDirectory() as folder:
        source = Source(args.source, folder)
        solution = read_recognition_solution(source.fetch(RECOGNITION_SOLUTION))
        photos = Path(folder, "photos")
        truths = extract(source, solution, photos, args.photos)
        answers, first_s, all_s = ask(args.output, photos)
    print_table(("photographs", "number", "named rightly", "probably no landmark"),
                count(answers, truths))  # fmt: skip
    each_ms = 1000 * (all_s - first_s) / max(1, len(answers) - 1)
    processor = resource.getrusage(resource.RUSAGE_CHILDREN)
    rows = [
        ("command to first answer, s", first_s),
        ("each further photo, ms", each_ms),
        ("the whole command, s of processor time", processor.ru_utime + processor.ru_stime),
    ]
    print_table(("time", "value"), rows)


def extract(source, solution, folder, at_most):
    """Writes photographs of Private rows as files: dict, file name -> set of landmark ids."""
    folder.mkdir()
    truths = {}
    for shard in source.select_shards("test"):
        path = source.fetch(shard.path)
        for member in list_members(path):
            truth = solution[format_image_id(member.image_id)]
            if truth.usage != "Private" or len(truths) == at_most:
                continue
            name = f"{format_image_id(member.image_id)}.jpg"
            data = source.read_range(shard, member.offset, member.size)
            Path(folder, name).write_bytes(data)
            truths[name] = truth.landmark_ids
    return truths


def ask(output, photos):
    """Runs identify.py: (answers by file name, seconds to the first one, and to the last)."""
    command = [sys.executable, "identify.py", photos, "--output", output, "--json"]
    begin, answers, first_s = time.perf_counter(), {}, None
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            last_s = time.perf_counter() - begin
            first_s = first_s or last_s
            answer = json.loads(line)
            answers[Path(answer["file"]).name] = answer
    return answers, first_s, last_s


def count(answers, truths):
    """Counts the answers to photographs with and without a landmark, as rows of a table."""
    groups = {"with a landmark": [], "without": []}
    for name, answer in answers.items():
        groups["with a landmark" if truths[name] else "without"].append((answer, truths[name]))
    return [
        (
            kind, len(group),
            sum(answer["landmark_id"] in truth for answer, truth in group) / max(1, len(group)),
            sum(answer["is_landmark"] is False for answer, _ in group) / max(1, len(group)),
        )
        for kind, group in groups.items()
    ]  # fmt: skip


if __name__ == "__main__":
    main()

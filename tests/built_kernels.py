"""Kernels built as a person builds them, and what is in their folders."""

import ast
import json
import re

import kernels

USER = "someone"
RECOGNITION = "landmark-recognition"
PARTS = [f"landmark-retrieval-part-{part}" for part in range(6)]
MERGE = "landmark-retrieval-merge"
SHRINKS = [f"landmark-shrink-part-{part}" for part in range(3)]
GALLERY = [f"landmark-gallery-part-{part}" for part in range(2)]
VOTE = "landmark-vote"


def build(folder, *arguments):
    kernels.main(["build", "--user", USER, "--kernels", str(folder), *arguments])


def files_of(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def facts_of(folder, name):
    (script,) = (folder / name).glob("*.py")
    return ast.literal_eval(re.search(r"^FACTS = (\{.*?^\})", script.read_text(), re.M | re.S)[1])


def metadata_of(folder, name):
    return json.loads((folder / name / "kernel-metadata.json").read_text())

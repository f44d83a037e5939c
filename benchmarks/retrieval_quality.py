"""mAP@100 of trained and untrained descriptors, raw and scaled to length 1, with the rerank or not.

    python benchmarks/retrieval_quality.py --demo --model output/demo/model.keras
    python benchmarks/retrieval_quality.py --source FOLDER --model MODEL

Runs retrieval.py once for each row and prints a table in Markdown.
"""

import contextlib
import io
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import retrieval
from runs.command_line import CommandLine, add_session_options, parse_session, run_command_line


def write_untrained(model_path, path):
    """Writes a copy of a model with new random weights."""
    import keras

    import model

    recogniser = model.load_recogniser(model_path)
    keras.utils.set_random_seed(1)
    untrained = keras.models.clone_model(recogniser.classifier)
    page = {"landmark_ids": recogniser.class_table.landmark_ids.tolist()}
    model.save_model(untrained, path, page)


def measure(arguments):
    """Runs retrieval.py; gives mAP@100 of all scored queries, (without rerank, with)."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        retrieval.main(arguments)
    return re.findall(r"mAP@100.*all ([\d.]+)", printed.getvalue())


def main(argv=None):
    """Prints the table, as the module's docstring shows."""
    parser = CommandLine(description=__doc__.splitlines()[0])
    add_session_options(parser)
    parser.add_argument("--model", type=Path, required=True, help="trained model.keras")
    args = parse_session(parser, argv)
    folder = args.output / "retrieval_quality"
    untrained = folder / "untrained.keras"
    write_untrained(args.model, untrained)
    source = ["--demo"] if args.demo else ["--source", args.source]
    print("| network | descriptors | mAP@100 | with the rerank |\n|---|---|---|---|")
    for network, path in (("trained", args.model), ("untrained", untrained)):
        for name, flag in (("raw", "--no-normalise"), ("length 1", "--normalise")):
            scores = measure(
                [*source, "--model", str(path), flag, "--output", str(folder / network)]
                + ["--scratch", str(args.scratch)]
            )
            print(f"| {network} | {name} | {' | '.join(scores)} |", flush=True)


if __name__ == "__main__":
    run_command_line(main)

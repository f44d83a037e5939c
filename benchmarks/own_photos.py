"""How long gather.py takes for a thousand, ten thousand and a hundred thousand small photos.

Each file is a JPEG of 224 x 168 pixels with noise of its own; a landmark has a hundred of them.
"""

import argparse
import io
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent


def write_photos(folder, count):
    """Writes so many photos, a hundred of each landmark; gives their bytes."""
    rng, total = np.random.default_rng(0), 0
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8))
        file = io.BytesIO()
        coarse.resize((224, 168), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        path = folder / f"landmark {number // 100:04}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.getvalue())
        total += file.tell()
    return total


def main():
    """Prints a row for each number of photos."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counts", type=int, nargs="+", default=[1000, 10_000, 100_000])
    print(
        "| photos | GB in | GB out | wall s | processor s | memory, MB |\n|---|---|---|---|---|---|"
    )
    for count in parser.parse_args().counts:
        with tempfile.TemporaryDirectory() as folder:
            photos, output = Path(folder, "photos"), Path(folder, "out")
            size_bytes, begin = write_photos(photos, count), time.perf_counter()
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            command = [sys.executable, "gather.py", photos, "--output", output]
            subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
            wall_s, after = (
                time.perf_counter() - begin,
                resource.getrusage(resource.RUSAGE_CHILDREN),
            )
            used_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            gathered = json.loads((output / "gathered.json").read_text())
            assert sum(gathered["photos"].values()) == count
            out_bytes = sum(path.stat().st_size for path in output.rglob("*.tar"))
            print(
                f"| {count:,} | {size_bytes / 1e9:.3f} | {out_bytes / 1e9:.3f} | {wall_s:.1f} | "
                f"{used_s:.1f} | {after.ru_maxrss / 1024:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()

"""Tables: a CSV becomes a checked pandas DataFrame, and a DataFrame a CSV.

pandas and pyarrow are imported inside the functions, here and wherever they are used: together they
take half a second, and `--help` needs neither.
"""

import csv
import re
from pathlib import Path

from utils import ExpectedError, Progress, atomic_write, require_file


def read_header(path, expected):
    """Reads the names of a CSV's columns as a list of str, empty for an empty file.

    Raises ExpectedError, with the columns `expected`, for no file or a pipe, which is read once.
    """
    require_file(path, "a CSV")
    try:
        with open(path, newline="", encoding="utf-8-sig", errors="replace") as file:
            return next(csv.reader(file), [])
    except (OSError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        problem = f"{path}: {reason}; expected a CSV with the columns {', '.join(expected)}"
        raise ExpectedError(f"{problem}; check the path") from error


def read_table(path, **types):
    """Reads the named columns of a CSV in UTF-8, with or without a byte order mark.

    Blank lines are skipped and not counted.

    Args:
        types: column name -> str or int.

    Returns:
        DataFrame of the named columns in that order, with one row or more. Text is held as Arrow
        strings, which take a third of the memory of Python's; an empty cell is the empty text,
        never NaN. Numbers are int64.

    Raises:
        ExpectedError: no such file, no such column, no row, a row with too few or too many cells,
            a cell that is no number, text that is not UTF-8.
    """
    import pandas as pd
    import pyarrow as pa

    header = read_header(path, types)
    missing = [name for name in types if name not in header]
    if missing:
        problem = f"{path}: no column {missing[0]!r} in {','.join(header)[:80]!r}"
        expected = f"a CSV with the columns {', '.join(types)}"
        raise ExpectedError(f"{problem}; expected {expected}; check the file")
    try:
        with Progress(f"reading {Path(path).name}", unit=""):
            try:
                table = _parse(path, types, use_threads=True)
            except pa.ArrowInvalid:
                table = _parse(path, types, use_threads=False)  # fails again, and names the line
    except (pa.ArrowInvalid, OSError) as error:
        reason = re.sub(r"Row #(\d+)", r"line \1", str(error).splitlines()[0])[:160]
        expected = f"a CSV in UTF-8 with the columns {', '.join(types)}; check the file"
        raise ExpectedError(f"{path}: {reason}; expected {expected}") from error
    if table.num_rows == 0:
        problem = "no row after the header; expected one or more; check the file"
        raise ExpectedError(f"{path}: {problem}")
    return table.to_pandas(types_mapper={pa.string(): pd.ArrowDtype(pa.string())}.get)


def _parse(path, types, use_threads):
    """Parses a CSV into a pyarrow table of the types asked for.

    Not with `pandas.read_csv(engine="pyarrow")`, which guesses the types first: before pandas 3.1
    ids like 0000000000000012 lose their zeros, and train.csv takes twice the memory.
    """
    import pyarrow as pa
    import pyarrow.csv

    pa.enable_signal_handlers(False)  # else Ctrl-C while it reads is an error of Arrow's
    arrow_types = {str: pa.string(), int: pa.int64()}
    return pa.csv.read_csv(
        path,
        read_options=pa.csv.ReadOptions(use_threads=use_threads),
        convert_options=pa.csv.ConvertOptions(
            include_columns=list(types),
            column_types={name: arrow_types[kind] for name, kind in types.items()},
            null_values=[],
        ),
    )


def write_table(path, frame):
    """Writes a DataFrame as a CSV, atomically: without its index, in UTF-8, lines ending in LF.

    Floats are written with 6 significant digits, None and NaN as empty cells.
    """
    with atomic_write(path) as temporary:
        frame.to_csv(temporary, index=False, float_format="%.6g", lineterminator="\n")

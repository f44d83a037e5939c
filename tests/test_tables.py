"""Tests of CSVs: what is read keeps its type, what is wrong is named in one line."""

import os

import numpy as np
import pandas as pd
import pytest
from checks import names_in, one_line

from data.tables import read_table, write_table
from utils import ExpectedError


@pytest.fixture
def csv_file(tmp_path):
    """Writes bytes to a CSV; gives its path."""

    def write(content):
        (tmp_path / "file.csv").write_bytes(content)
        return tmp_path / "file.csv"

    return write


def read(path):
    """Reads the columns `id` and `number` of a CSV as a dict of lists."""
    return read_table(path, id=str, number=int).to_dict("list")


def error_of(path):
    """Reads a CSV that is wrong; gives what its one line says after the path."""
    with pytest.raises(ExpectedError) as caught:
        read(path)
    message = one_line(caught.value)
    assert message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


# ---------------------------------------------------------------------------------------- reading


def test_text_stays_text_and_numbers_become_int64(csv_file):
    ids = ["0000000000000012", "00000000000001e5", "", "NA", "None", "true", " a", "ä,ö"]
    lines = [f'"{image_id}",{number}' for number, image_id in enumerate(ids, start=-2)]
    frame = read_table(csv_file("\n".join(["id,number", *lines]).encode()), id=str, number=int)
    assert frame["id"].tolist() == ids
    assert frame["number"].dtype == np.int64
    assert frame["number"].tolist() == list(range(-2, 6))


def test_a_text_of_digits_alone_keeps_its_zeros(csv_file):
    path = csv_file(b"id,number\n0000000000000012,0012\n")
    assert read(path) == {"id": ["0000000000000012"], "number": [12]}


def test_columns_are_found_by_name_and_others_are_left_out(csv_file):
    frame = read_table(csv_file(b"url,number,id\nx,1,a\ny,2,b\n"), id=str, number=int)
    assert frame.columns.tolist() == ["id", "number"]
    assert frame.values.tolist() == [["a", 1], ["b", 2]]


@pytest.mark.parametrize(
    "content",
    [
        b"id,number\na,1\nb,2\n",
        b"id,number\na,1\nb,2",
        b"\xef\xbb\xbfid,number\na,1\nb,2\n",
        b"id,number\r\na,1\r\nb,2\r\n",
        b'\xef\xbb\xbf"id","number"\r\n"a","1"\r\n"b","2"\r\n',
        b"id,number\n\na,1\nb,2\n\n\n",
    ],
)
def test_byte_order_marks_crlf_quotes_and_blank_lines_are_taken(csv_file, content):
    assert read(csv_file(content)) == {"id": ["a", "b"], "number": [1, 2]}


def test_a_long_table_is_read_in_its_order(csv_file):
    rows = [f"{number:016x},{number}" for number in range(100_000)]  # blocks of 1 MB
    frame = read_table(csv_file("\n".join(["id,number", *rows]).encode()), id=str, number=int)
    assert frame.index.equals(pd.RangeIndex(100_000))
    assert frame["number"].tolist() == list(range(100_000))
    assert frame["id"].iloc[-1] == f"{99_999:016x}"


def test_a_file_that_is_not_there_is_named(tmp_path):
    assert error_of(tmp_path / "none.csv") == (
        "No such file or directory; expected a CSV with the columns id, number; check the path"
    )
    assert error_of(tmp_path).startswith("Is a directory; ")


@pytest.mark.parametrize(
    ("header", "missing"),
    [("", "id"), ("number", "id"), ("id;number", "id"), ("id", "number"), ("<html>", "id")],
)
def test_a_missing_column_is_named(csv_file, header, missing):
    for rest in ("", "\n", "\nx,y\n"):
        assert error_of(csv_file(f"{header}{rest}".encode())) == (
            f"no column {missing!r} in {header!r}; expected a CSV with the columns id, number; "
            "check the file"
        )


@pytest.mark.parametrize("content", [b"id,number\n", b"\xef\xbb\xbfid,number\r\n\n"])
def test_a_header_without_rows_is_an_error(csv_file, content):
    assert error_of(csv_file(content)) == (
        "no row after the header; expected one or more; check the file"
    )


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"b", "line 3: Expected 2 columns, got 1: b"),
        (b"b,2,3", "line 3: Expected 2 columns, got 3: b,2,3"),
        (b"b,seven", "line 3: CSV conversion error to int64: invalid value 'seven'"),
        (b"b,7.5", "line 3: CSV conversion error to int64: invalid value '7.5'"),
        (b"b,", "line 3: CSV conversion error to int64: invalid value ''"),
        (b"b,NA", "line 3: CSV conversion error to int64: invalid value 'NA'"),
        (b"b,9223372036854775808", "invalid value '9223372036854775808'"),
        (b"\xff\xfe,2", "line 3: CSV conversion error to string: invalid UTF8 data"),
        (b"\xff\xfe\x00\x01", "line 3: Expected 2 columns, got 1"),
        (b'"b,2', "line 3: Expected 2 columns, got 1"),
        (b"b" * 100_000, "line 3: Expected 2 columns, got 1"),
    ],
)
def test_a_wrong_line_is_named(csv_file, line, reason):
    error = error_of(csv_file(b"id,number\na,1\n" + line + b"\nc,3\n"))
    assert reason in error
    assert error.endswith("; expected a CSV in UTF-8 with the columns id, number; check the file")
    assert len(error) < 300


def test_a_file_that_is_no_text_is_one_line(csv_file):
    for content in (bytes(range(256)) * 1000, b"x" * 300_000, "id,number\na,1\n".encode("utf-16")):
        error_of(csv_file(content))


# ---------------------------------------------------------------------------------------- writing


def test_a_table_is_written_without_its_index_and_with_empty_cells(tmp_path):
    rows = [
        {"step": 1, "loss": 1 / 3, "valid": None, "problem": ""},
        {"step": 1_234_567, "loss": 12_345_678.0, "valid": 0.25, "problem": "a, b"},
        {"step": 3, "loss": float("nan"), "valid": 1.0},
    ]
    write_table(tmp_path / "new" / "table.csv", pd.DataFrame(rows, index=[5, 6, 7]))
    assert (tmp_path / "new" / "table.csv").read_bytes() == (
        b'step,loss,valid,problem\n1,0.333333,,\n1234567,1.23457e+07,0.25,"a, b"\n3,,1,\n'
    )


def test_a_table_without_rows_is_its_header(tmp_path):
    write_table(tmp_path / "table.csv", pd.DataFrame(columns=["step", "loss"]))
    assert (tmp_path / "table.csv").read_bytes() == b"step,loss\n"


def test_a_failed_write_keeps_the_older_table(tmp_path):
    class Broken:
        def __str__(self):
            raise RuntimeError("broken")

    write_table(tmp_path / "table.csv", pd.DataFrame({"id": ["a"]}))
    with pytest.raises(RuntimeError):
        write_table(tmp_path / "table.csv", pd.DataFrame({"id": ["b", Broken()]}))
    assert (tmp_path / "table.csv").read_bytes() == b"id\na\n"
    assert names_in(tmp_path) == ["table.csv"]


def test_a_table_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ExpectedError) as caught:
        write_table(tmp_path / "file" / "table.csv", pd.DataFrame({"id": ["a"]}))
    assert one_line(caught.value).startswith(f"{tmp_path}/file/table.csv: cannot be written")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with a name here")
def test_a_pipe_is_no_table_since_it_is_read_twice(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    told = "not a file; expected a CSV; write it to a file first"
    assert error_of(tmp_path / "pipe.csv") == told

"""Kaggle's official client, called as a command: one question, one answer, tried again."""

import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from utils import ExpectedError, say

RETRY_PAUSES_S = (5, 20, 60, 300, 900)  # after a failure of the network


class ClientError(ExpectedError):
    """The client reported a failure; the answer as a whole is `text`."""

    text = ""


class NetworkError(ClientError):
    """A failure that may pass by itself."""


_PASSING = re.compile(
    r"\b(408|429|500|502|503|504)\b[^\n]*(Error|Too Many)|Connection(Error|Reset|Refused)|Timeout|"
    r"timed out|Max retries|Connection (aborted|broken)|RemoteDisconnected|IncompleteRead|SSLError"
)
_REFUSED = re.compile(r"^.*\b[45]\d\d [^\n]*(Error|Too Many)[^\n]*", re.MULTILINE)


def call_client(*arguments, timeout_s=600):
    """Calls the official client once.

    Returns:
        What it printed to stdout.

    Raises:
        NetworkError: a failure that may pass.
        ClientError: any other failure, in one line.
    """
    beside = Path(sys.executable).with_name("kaggle")
    client = str(beside) if beside.is_file() else shutil.which("kaggle")
    install = "install it with: pip install kaggle six"
    if client is None:
        raise ExpectedError(f"no command `kaggle`; expected Kaggle's official client; {install}")
    words = f"kaggle {' '.join(arguments[:2])}"
    try:
        done = subprocess.run(
            [client, *arguments], capture_output=True, text=True, errors="replace",
            stdin=subprocess.DEVNULL, timeout=timeout_s,
        )  # fmt: skip
        if done.returncode == 0:
            return done.stdout
        text = f"{done.stdout}\n{done.stderr}"
    except subprocess.TimeoutExpired:
        text = f"Timeout: no answer within {timeout_s} s"
    except OSError as error:
        raise ExpectedError(f"{client}: {error.strerror}; expected a program; {install}") from error
    refused = _REFUSED.search(text)  # clients from 2.2.5 on put advice behind it
    problem = refused[0].strip()[:300] if refused else last_line(text)
    kind, todo = ClientError, "run the command again, or look at kaggle.com"
    if "ModuleNotFoundError" in text:
        todo = install
    elif "Authentication required" in text:
        problem, todo = "no credentials", "log in with: kaggle auth login"
    elif "unrecognized arguments" in text:
        todo = "renew it with: pip install --upgrade kaggle"
    elif _PASSING.search(text):
        kind, todo = NetworkError, "run the command again when the network is back"
    error = kind(f"{words}: {problem}; expected an answer of Kaggle; {todo}")
    error.text = text
    raise error


def last_line(text):
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it failed without a word"


def patiently(attempt):
    """Gives what `attempt()` returns, and tries again after a pause when the network fails."""
    for pause_s in RETRY_PAUSES_S:
        try:
            return attempt()
        except NetworkError as error:
            say(f"{error}: next try in {pause_s} s")
            time.sleep(pause_s)
    return attempt()


def ask_client(*arguments, timeout_s=600):
    """Calls the client for something that can be asked twice; see `call_client`."""
    return patiently(lambda: call_client(*arguments, timeout_s=timeout_s))

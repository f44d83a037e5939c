"""Kaggle's official client, asked through its Python API: one question, one answer, tried again."""

import concurrent.futures
import contextlib
import io
import re
import time

from utils import ExpectedError, in_background, say

RETRY_PAUSES_S = (5, 20, 60, 300, 900)  # after a failure of the network


class ClientError(ExpectedError):
    """The client reported a failure; `status` is that of HTTP, or None."""

    status = None


class NetworkError(ClientError):
    """A failure that may pass by itself."""


def ask_once(method, *arguments, timeout_s=600, **options):
    """Calls a method of the client's `KaggleApi`, e.g. `kernels_status`; gives what it returns.

    NetworkError: a failure that may pass; ClientError: any other; ExpectedError: no client.
    """
    words, printed = f"kaggle {method.replace('_', ' ')}", io.StringIO()
    try:
        # It talks to its own users, and waits for an answer for ever: a thread can be left.
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            answer = in_background(_call, method, arguments, options)
            if not concurrent.futures.wait([answer], timeout_s).done:
                raise TimeoutError(f"no answer within {timeout_s} s")
            return answer.result()
    except ImportError as error:
        raise ExpectedError(
            f"{words}: {printable(error)}; expected Kaggle's official client; install it with: "
            "pip install kaggle six"
        ) from error
    except (Exception, SystemExit) as error:
        raise _explain(words, error) from error


def _call(method, arguments, options):
    # Here, since it takes half a second; anew each time, since a log-in may end within a day.
    from kaggle.api.kaggle_api_extended import KaggleApi

    api = KaggleApi()
    api.authenticate()
    return getattr(api, method)(*arguments, **options)


def _explain(words, error):
    """Makes the error to raise, in one line, of what the client raised."""
    import requests
    import urllib3

    # In the place of a 401 or 403 the client raises a ValueError with advice.
    answers = (getattr(one, "response", None) for one in (error, error.__context__))
    status = next((one.status_code for one in answers if one is not None), None)
    of_network = (
        requests.RequestException, urllib3.exceptions.HTTPError, ConnectionError, TimeoutError
    )  # fmt: skip
    is_network = isinstance(error, of_network) and not isinstance(error, ValueError)
    is_plain = status is not None or isinstance(error, ValueError)
    problem = f"{error}" if is_plain else f"{type(error).__name__}: {error}"
    kind, todo = ClientError, "run the command again, or look at kaggle.com"
    if isinstance(error, SystemExit) or status == 401:
        problem, todo = "no credentials", "log in with: kaggle auth login"
    elif is_network if status is None else status in (408, 429) or status >= 500:
        kind, todo = NetworkError, "run the command again when the network is back"
    elif getattr(error, "errno", None):  # of the disk
        todo = "free some space, or choose another folder"
    elif isinstance(error, (AttributeError, KeyError, TypeError)):
        todo = "renew the client with: pip install --upgrade kaggle"
    made = kind(f"{words}: {printable(problem)}; expected an answer of Kaggle; {todo}")
    made.status = status
    return made


def printable(text):
    """Writes foreign text as one line of 300 letters at most, without what steers a terminal."""
    text = " ".join(str(text).split())
    text = re.sub(r"(https?://[^\s?]+)\?\S+", r"\1?...", text)  # a signed address is a key
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)[:300]


def patiently(attempt):
    """Gives what `attempt()` returns, and tries again after a pause when the network fails."""
    for pause_s in RETRY_PAUSES_S:
        try:
            return attempt()
        except NetworkError as error:
            say(f"{error}: next try in {pause_s} s")
            time.sleep(pause_s)
    return attempt()


def download(kernel_id, folder, names):
    """Downloads these files of a kernel's output, no others, and its log, where they are there."""
    pattern = f"^({'|'.join(map(re.escape, names))})$"
    # Its own page size: a client that knows none gives the first page alone, and refuses this.
    ask_once("kernels_output", kernel_id, str(folder), pattern, True, page_size=20, timeout_s=7200)

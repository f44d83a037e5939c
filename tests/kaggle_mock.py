"""A loopback stand-in for Kaggle that the real `kaggle` client talks to as its HTTP proxy.

It proves our side only: that the client gets what we mean, and that we understand its answers.
"""

import ast
import itertools
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

IDS = ("00000000000000aa", "00000000000000bb")
RESULTS = {
    "recognition_submission.csv": f"id,landmarks\n{IDS[0]},17 0.5\n{IDS[1]},\n",
    "retrieval_submission.csv": f"id,images\n{IDS[0]},{IDS[1]}\n{IDS[1]},\n",
}
TOO_MANY = "Maximum batch GPU session count of 2 reached."
TOO_MANY_CPUS = "Maximum batch CPU session count of {} reached."


@dataclass
class Outcome:
    """What becomes of one session.

    Attributes:
        status: at its end.
        is_finished: whether it leaves the kernel's result.
        error: that it ended with, though it kept what it had done.
        files: dict, path -> str, more files of its output.
        has_report: whether its output has kernel.json.
        log: str; of a script that failed.
        failure: what Kaggle says of a session that failed.
        looks: questions for its status until it ends.
        stale_looks: questions that are answered with the session before.
    """

    status: str = "COMPLETE"
    is_finished: bool = True
    error: str = ""
    files: dict = field(default_factory=dict)
    has_report: bool = True
    log: str = ""
    failure: str = "it failed"
    looks: int = 2
    stale_looks: int = 0


@dataclass
class Session:
    """A session that was started by a push."""

    slug: str
    request: dict
    outcome: Outcome
    started: int
    looks: int = 0
    ended: int | None = None
    is_stale: bool = False

    @property
    def status(self):
        if self.ended is not None:
            return self.outcome.status
        return "RUNNING" if self.looks else "QUEUED"

    @property
    def facts(self):
        return ast.literal_eval(
            re.search(r"^FACTS = (\{.*?^\})", self.request["text"], re.M | re.S)[1]
        )

    def output(self):
        """Gives the files of the output: dict, path -> bytes."""
        if self.ended is None or self.outcome.status != "COMPLETE":
            return {}
        files = dict(self.outcome.files)
        facts = self.facts
        if self.outcome.is_finished:
            files.setdefault(facts["result"], RESULTS.get(facts["result"], "arrays"))
        files = {path: text.encode() for path, text in files.items()}
        if self.outcome.has_report:
            report = facts | {
                "started": self.started,
                "ended": self.ended,
                "finished": self.outcome.is_finished,
                "error": self.outcome.error,
                "files": {path: len(data) for path, data in sorted(files.items())},
            }
            files["kernel.json"] = json.dumps(report).encode()
        return files


class KaggleMock(ThreadingHTTPServer):
    """Plays Kaggle while a `with` block lasts; a session goes on whenever its status is asked.

    Attributes:
        outcomes: dict, slug -> list of Outcome, one for each of its sessions; then successes.
        sessions: list of Session, in the order of the pushes.
        faults: dict, method -> list of faults, one for each call: a status, "drop" (closes the
            connection), "lose" (does it and closes the connection), or a dict to answer.
        dropped: sources that pushes do not get.
        foreign_gpus: GPU sessions of somebody else; one ends with each refused push.
        cpu_sessions: sessions without a GPU that may run at once.
        most_gpus, most_cpus: the most sessions of a kind seen at once.
        num_refused: pushes that came while there were as many as may be.
        submissions: list of (competition, description, content).
    """

    daemon_threads = False

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.outcomes, self.sessions, self.faults, self.dropped = {}, [], {}, set()
        self.foreign_gpus = self.most_gpus = self.most_cpus = self.num_refused = 0
        self.cpu_sessions = 5
        self.submissions, self.uploads, self.calls = [], {}, []
        self.clock = itertools.count(1000)
        self.lock = threading.Lock()

    def __enter__(self):
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,))
        self._thread.start()
        return self

    def __exit__(self, *exception):
        self.shutdown()
        self._thread.join()
        self.server_close()

    def environment(self, folder):
        """Gives the variables that lead the client here; `folder` is its empty home."""
        return {
            "KAGGLE_API_ENVIRONMENT": "LOCALHOST",
            "KAGGLE_USERNAME": "someone",
            "KAGGLE_KEY": "0",
            "KAGGLE_CONFIG_DIR": str(folder),
            "HOME": str(folder),
            "http_proxy": f"http://127.0.0.1:{self.server_port}",
            "https_proxy": "http://127.0.0.1:9",
            "no_proxy": "",
            "NO_PROXY": "",
        }

    def pushes(self):
        """Lists the slugs in the order of their pushes."""
        return [session.slug for session in self.sessions]

    def last(self, slug):
        """Gives the last sessions of a kernel: (the one before or None, the last or None)."""
        of_slug = [None, None, *(one for one in self.sessions if one.slug == slug)]
        return of_slug[-2:]

    # ------------------------------------------------------------------------- the API's methods

    def SaveKernel(self, request):  # noqa: N802 - named by the API, as are those below
        owner, slug = request["slug"].split("/")
        gpus = sum(one.ended is None and one.request["enableGpu"] for one in self.sessions)
        if request["enableGpu"] and gpus + self.foreign_gpus >= 2:
            self.foreign_gpus = max(0, self.foreign_gpus - 1)
            self.num_refused += 1
            return {"error": TOO_MANY}
        cpus = sum(one.ended is None and not one.request["enableGpu"] for one in self.sessions)
        if not request["enableGpu"] and cpus >= self.cpu_sessions:
            self.num_refused += 1
            return {"error": TOO_MANY_CPUS.format(self.cpu_sessions)}
        known = {f"{owner}/{one}" for one in self.pushes()} - self.dropped
        outcome = (self.outcomes.get(slug) or [Outcome()]).pop(0)
        self.sessions.append(Session(slug, request, outcome, next(self.clock)))
        self.most_gpus = max(self.most_gpus, gpus + request["enableGpu"])
        self.most_cpus = max(self.most_cpus, cpus + (not request["enableGpu"]))
        return {
            "ref": f"/code/{owner}/{slug}",
            "url": f"https://www.kaggle.com/code/{owner}/{slug}",
            "versionNumber": self.pushes().count(slug),
            "invalidKernelSources": [
                source for source in request.get("kernelDataSources", []) if source not in known
            ],
        }

    def GetKernelSessionStatus(self, request):  # noqa: N802
        before, session = self.last(request["kernelSlug"])
        if session is None:
            return 404
        session.is_stale = session.outcome.stale_looks > 0
        if session.is_stale:
            session.outcome.stale_looks -= 1
            return {"status": before.status} if before else 404
        status = session.status
        session.looks += 1
        if session.ended is None and session.looks >= session.outcome.looks:
            session.ended = next(self.clock)
        return {"status": status, "failureMessage": session.outcome.failure * (status == "ERROR")}

    def ListKernelSessionOutput(self, request):  # noqa: N802
        before, session = self.last(request["kernelSlug"])
        session = before if session.is_stale else session
        files = session.output()
        number = self.sessions.index(session)
        first = int(request.get("pageToken") or 0)
        page = list(files)[first : first + 2]  # small pages, as a large output has many
        lines = session.outcome.log.splitlines(keepends=True)
        log = json.dumps([{"stream_name": "stderr", "time": 1.0, "data": line} for line in lines])
        return {
            "files": [
                {"fileName": path, "url": f"http://localhost/files/{number}/{path}"}
                for path in page
            ],
            "log": log,
            "nextPageToken": str(first + 2) if first + 2 < len(files) else "",
        }

    def StartSubmissionUpload(self, request):  # noqa: N802
        token = f"token{len(self.uploads)}"
        return {"token": token, "createUrl": f"http://localhost/upload/{token}"}

    def CreateSubmission(self, request):  # noqa: N802
        content = self.uploads[request["blobFileTokens"]]
        competition, words = request["competitionName"], request["submissionDescription"]
        self.submissions.append((competition, words, content))
        return {"message": f"Successfully submitted to {competition}", "ref": 1}

    def ListSubmissions(self, request):  # noqa: N802
        return {
            "submissions": [
                {"ref": number, "fileName": "submission.csv", "description": words}
                for number, (competition, words, _) in enumerate(self.submissions)
                if competition == request["competitionName"]
            ]
        }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def handle_any(self):
        length = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(length)
        with self.server.lock:
            answer = self.answer(urlsplit(self.path).path, body)
        self.close_connection = True
        if answer is None:
            return
        if isinstance(answer, int):
            status, data = answer, json.dumps({"code": answer, "message": "Not found"}).encode()
            data = data if answer == 404 else b"busy"
            kind = "application/json" if answer == 404 else "text/plain"
        else:
            is_bytes = isinstance(answer, bytes)
            status, data = 200, answer if is_bytes else json.dumps(answer).encode()
            kind = "application/octet-stream" if is_bytes else "application/json"
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PUT = handle_any  # noqa: N815

    def answer(self, path, body):
        """Gives what to answer: JSON or bytes, a status, or None to close the connection."""
        server = self.server
        if path.startswith("/upload/"):
            server.uploads[path.rpartition("/")[2]] = body
            return b""
        if path.startswith("/files/"):
            number, file = path.removeprefix("/files/").split("/", 1)
            fault = self.next_fault(file)
            return fault if isinstance(fault, int) else server.sessions[int(number)].output()[file]
        method = path.rpartition("/")[2]
        server.calls.append(method)
        fault = self.next_fault(method)
        if fault is not None and fault != "lose":
            return None if fault == "drop" else fault
        function = getattr(server, method, None)
        answer = function(json.loads(body)) if function else 404
        return None if fault == "lose" else answer

    def next_fault(self, name):
        script = self.server.faults.get(name)
        return script.pop(0) if script else None

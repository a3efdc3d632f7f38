"""A stub of an OpenAI-compatible server on this machine, and what a judge would answer."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

AXES = ["composition", "quality"]


def verdict(first, second):
    scores = {
        f"image {number}": dict(zip(AXES, values, strict=True))
        for number, values in ((1, first), (2, second))
    }
    return "I think {so}. " + json.dumps(scores)


class Stub:
    """Answers in turn: an int is a status, a text the message's content."""

    def __init__(self, answers=()):
        self.answers, self.asked, self.keys = list(answers), [], []
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self._send(404, {})

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                stub.asked.append(json.loads(body))
                stub.keys.append(self.headers.get("Authorization"))
                answer = stub.answers.pop(0)
                answer = answer(stub.asked[-1]) if callable(answer) else answer
                if isinstance(answer, int):
                    return self._send(answer, {"error": "busy"})
                usage = {"prompt_tokens": 100, "completion_tokens": 10}
                message = {"choices": [{"message": {"content": answer}}], "usage": usage}
                self._send(200, message)

            def _send(self, status, data):
                self.send_response(status)
                self.end_headers()
                self.wfile.write(json.dumps(data).encode())

            def log_message(self, *_):
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server.server_port}/v1"

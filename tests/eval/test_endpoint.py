"""The judge's key and time against endpoints that redirect, echo, drip or answer nonsense."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from cmlora_fast.eval import endpoint as module
from cmlora_fast.eval.endpoint import Endpoint
from cmlora_fast.eval.judge import Judge

KEY = "sk-/4f\"&+'x"  # JSON, addresses and pages write it in other ways
QUESTION = [{"type": "text", "text": "?"}]


class Server:
    """``answer(handler)`` writes what it likes; ``keys`` are those that came."""

    def __init__(self, answer):
        self.keys, self.over = [], threading.Event()
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.rfile.read(int(self.headers["Content-Length"] or 0))
                stub.keys.append(self.headers["Authorization"])
                try:
                    answer(self, stub)
                except OSError:  # nobody listens any more
                    pass

            do_POST = do_GET

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def endpoint(self, **options):
        url = f"http://127.0.0.1:{self.server.server_port}/v1"
        return Endpoint(url, "vlm", **{"key": KEY, "wait": lambda _: None, "attempts": 2} | options)

    def close(self):
        self.over.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def serve():
    """Answer -> server."""
    made = []

    def start(answer):
        made.append(Server(answer))
        return made[-1]

    yield start
    for server in made:
        server.close()


def body(content, status=200, reason=None, **headers):
    def answer(handler, server):
        handler.send_response(status, reason)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(content if isinstance(content, bytes) else content.encode())

    return answer


def completion(content, **more):
    return json.dumps({"choices": [{"message": {"content": content}}], **more})


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("verb", ["check", "ask"])
def test_the_key_never_goes_where_a_redirect_points(serve, status, verb):
    other = serve(body(completion("hello")))
    there = other.endpoint().url + "/elsewhere"
    first = serve(body("", status, Location=there))
    with pytest.raises(ValueError, match=f"redirects to {there}") as caught:
        first.endpoint().check() if verb == "check" else first.endpoint().ask(QUESTION)
    assert str(caught.value).startswith(f"judge {first.endpoint().url}: HTTP Error {status}")
    assert other.keys == [] and first.keys == [f"Bearer {KEY}"]


ECHOES = {
    "body": body(f"no such key: Bearer {KEY}", 400),
    "json": body(json.dumps({"error": KEY}).replace("/", r"\/"), 400),
    "page": body("<p>sk-/4f&quot;&amp;+&#x27;x</p>", 400),
    "reason": body("", 401, f"who is {KEY}"),
    "location": body("", 302, Location=f"http://127.0.0.1:9/?key={KEY}"),
    "quoted location": body("", 302, Location="http://127.0.0.1:9/?key=sk-%2F4f%22%26%2B%27x"),
    "busy": body(f"Bearer {KEY}", 503),
    "half in what is shown": body("x" * 250 + KEY, 400),
    "no completion": body(json.dumps({"echo": KEY})),
    "status line": lambda handler, server: handler.wfile.write(f"{KEY} is wrong\r\n".encode()),
}


@pytest.mark.parametrize("name", ECHOES)
@pytest.mark.parametrize("verb", ["check", "ask"])
def test_a_key_that_is_echoed_is_not_printed(serve, name, verb, capsys):
    endpoint = serve(ECHOES[name]).endpoint()
    try:
        endpoint.check() if verb == "check" else endpoint.ask(QUESTION)
    except ValueError as error:
        text = str(error) + repr(error.__cause__)
        assert error.__suppress_context__ and "sk-" not in text and "4f" not in text
    else:
        assert verb == "check"  # somebody is there
    said = capsys.readouterr()
    assert "sk-" not in said.out + said.err


def test_a_key_in_an_answer_is_not_quoted(serve):
    judge = Judge(serve(body(completion(f"I was sent {KEY}"))).endpoint())
    with pytest.raises(ValueError, match=r"no scores in 2 answers; the last: 'I was sent \*+'"):
        judge.compare((), ())


def test_no_repr_holds_the_key():
    endpoint = Endpoint("http://x/v1", "vlm", KEY)
    assert "4f" not in repr(endpoint) + str(endpoint) + repr(Judge(endpoint))
    assert endpoint != Endpoint("http://x/v1", "vlm", "another")


@pytest.mark.parametrize("key", ["sk- 1", "sk-1\n", "sk-é", "sk-\r\nHost: x"])
def test_a_key_that_no_header_can_hold_is_refused_untold(key):
    with pytest.raises(ValueError, match="the key: expected printable ASCII") as caught:
        Endpoint("http://x/v1", "vlm", key)
    assert "sk-" not in str(caught.value)


def dripping(part):
    """A byte every 50 ms, for as long as anyone listens."""

    def answer(handler, server):
        if part == "status":
            handler.wfile.write(b"HTTP/1.1 200 ")
        else:
            handler.wfile.write(b"HTTP/1.1 200 OK\r\n" + b"\r\n" * (part == "body"))
        while not server.over.wait(0.05):
            handler.wfile.write(b"x")

    return answer


@pytest.mark.parametrize("part", ["status", "headers", "body"])
def test_the_timeout_is_one_for_the_whole_attempt(serve, part):
    endpoint = serve(dripping(part)).endpoint(timeout=0.4)
    began = time.monotonic()
    with pytest.raises(ValueError, match=r"no answer after 2 attempts: not answered within 0\.4 s"):
        endpoint.ask(QUESTION)
    assert time.monotonic() - began < 2


def test_a_check_has_its_time_too(serve):
    endpoint = serve(dripping("headers")).endpoint(timeout=0.3)
    with pytest.raises(ValueError, match=r"cannot be reached: not answered within 0\.3 s"):
        endpoint.check()


def test_no_more_is_read_than_a_bounded_answer(serve, monkeypatch):
    monkeypatch.setattr(module, "LARGEST", 2**20)
    sent = []

    def flood(handler, server):
        handler.send_response(200)
        handler.end_headers()
        for _ in range(64):
            handler.wfile.write(b" " * 2**20)
            sent.append(1)

    endpoint = serve(flood).endpoint(attempts=1)
    with pytest.raises(ValueError, match="an answer of more than 1 MiB"):
        endpoint.ask(QUESTION)
    assert len(sent) < 32  # what the sockets buffer aside


GOOD = completion("fine", usage={"prompt_tokens": 3, "completion_tokens": 4})
BAD = {
    "no JSON": "{",
    "nested": "[" * 100_000,
    "nested objects": '{"a":' * 100_000,
    "a list": "[]",
    "a number": "3",
    "no choices": "{}",
    "choices null": '{"choices": null}',
    "choices empty": '{"choices": []}',
    "message text": '{"choices": [{"message": "x"}]}',
    "content a number": completion(7),
    "content zero": completion(0),
    "content true": completion(True),
    "content an object": completion({"text": "x"}),
    "content a list of numbers": completion([1, 2]),
    "content a list of nulls": completion([None]),
    "a part without text": completion([{"type": "text"}]),
    "a part whose text is a number": completion([{"type": "text", "text": 3}]),
    "usage text": completion("x", usage="3 tokens"),
    "usage a list": completion("x", usage=[3, 4]),
    "usage a number": completion("x", usage=3),
    "count null": completion("x", usage={"prompt_tokens": None, "completion_tokens": 1}),
    "count text": completion("x", usage={"prompt_tokens": "3", "completion_tokens": 1}),
    "count negative": completion("x", usage={"prompt_tokens": -3}),
    "count of 5,000 digits": completion("x", usage={"prompt_tokens": 7}).replace("7", "9" * 5000),
    "not UTF-8": b'{"choices": "\xff\xfe',
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_answer_is_asked_again_and_told_in_the_end(serve, name):
    answers = [BAD[name], GOOD]
    server = serve(lambda handler, stub: body(answers[len(stub.keys) > 1])(handler, stub))
    assert server.endpoint().ask(QUESTION) == ("fine", 3, 4)
    with pytest.raises(ValueError, match=r"no answer after 2 attempts: (no|a) chat comp") as caught:
        serve(body(BAD[name])).endpoint().ask(QUESTION)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([{"type": "text", "text": "two "}, {"type": "text", "text": "parts"}], "two parts"),
        ([{"type": "image_url", "image_url": {}}, {"type": "text", "text": "x"}], "x"),
        ([], ""),
        (None, ""),
    ],
)
def test_content_may_be_a_list_of_parts(serve, content, text):
    assert serve(body(completion(content))).endpoint().ask(QUESTION) == (text, 0, 0)

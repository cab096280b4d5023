"""Fetching images: a real server that drips, floods or never ends costs neither memory nor time beyond the limits."""

import io
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from PIL import Image

from hf_vq.modeling import fetching_vq
from hf_vq.modeling.fetching_vq import fetch
from hf_vq.modeling.image_processing_vq import VQImageProcessor

Answer = Callable[[socket.socket], None]
HEAD = b"HTTP/1.1 200 OK\r\nConnection: close\r\n"


@pytest.fixture
def server() -> Iterator[Callable[[Answer], str]]:
    """Starts servers that answer every connection in their own way, and returns their URLs."""
    listeners = []

    def start(answer: Answer) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    try:
                        connection.recv(65536)
                        answer(connection)
                    except OSError:  # the client has hung up
                        pass

        threading.Thread(target=serve, daemon=True).start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}/a.png"

    yield start
    for listener in listeners:
        listener.close()


def drip(connection: socket.socket, content: bytes, seconds: float = 20) -> None:
    """Sends a byte every 50 ms."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        connection.sendall(content)
        time.sleep(0.05)


def dripping_body(connection: socket.socket) -> None:
    """A body that never ends."""
    connection.sendall(HEAD + b"\r\n")
    drip(connection, b"x")


def dripping_head(connection: socket.socket) -> None:
    """A head that never ends."""
    connection.sendall(HEAD + b"X-Slow: ")
    drip(connection, b"x")


def redirect_forever(connection: socket.socket) -> None:
    """An answer that leads on to itself, slowly."""
    time.sleep(0.2)
    connection.sendall(b"HTTP/1.1 302 Found\r\nConnection: close\r\nContent-Length: 0\r\nLocation: /b.png\r\n\r\n")


def flood(connection: socket.socket) -> None:
    """A body that is sent as fast as it is read, without an end."""
    connection.sendall(HEAD + b"\r\n")
    while True:
        connection.sendall(bytes(65536))


def claim(connection: socket.socket) -> None:
    """A head that announces too much."""
    connection.sendall(HEAD + b"Content-Length: 100000000000\r\n\r\n")
    time.sleep(20)


@pytest.mark.parametrize("answer", [dripping_body, dripping_head, redirect_forever])
def test_a_slow_server_is_left_in_time(server, monkeypatch, answer):
    """However it keeps the connection alive; the processor, and with it the pipeline, stops with a clear error."""
    monkeypatch.setattr(fetching_vq, "MAX_SECONDS", 1.0)
    began = time.monotonic()

    with pytest.raises(TimeoutError, match="not sent the whole file within 1 seconds"):
        VQImageProcessor(image_size=16)(server(answer), return_tensors="pt")
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("answer", [flood, claim])
def test_a_large_file_is_refused(server, monkeypatch, answer):
    """As soon as it is seen to be too large."""
    monkeypatch.setattr(fetching_vq, "MAX_BYTES", 1_000_000)

    with pytest.raises(ValueError, match="more than 1,000,000 bytes"):
        fetch(server(answer))


def test_a_compressed_answer_is_refused(server):
    """It could become any size."""
    with pytest.raises(ValueError, match="compresses the file"):
        fetch(server(lambda connection: connection.sendall(HEAD + b"Content-Encoding: gzip\r\n\r\n")))


def test_an_ordinary_file_arrives(server):
    """Whether or not the server tells its length."""
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(buffer, "png")
    content = buffer.getvalue()
    for head in (HEAD, HEAD + f"Content-Length: {len(content)}\r\n".encode()):

        def answer(connection: socket.socket, head: bytes = head) -> None:
            connection.sendall(head + b"\r\n" + content)

        assert fetch(server(answer)) == content

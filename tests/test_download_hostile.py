"""A server that lies, stalls, breaks off and leads astray: one line for the user, and nothing is left behind.

It speaks raw bytes on 127.0.0.1, so that it can say what no decent server would; https with a certificate made here.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import shutil
import socket
import ssl
import struct
import subprocess
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import data.config
import data.download
from data.config import load_data_config
from data.download import Archive, fetch
from utils.errors import UserError

# Python's own http.client lets go of a socket, to be closed by the garbage collector, where a status line is none.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

Answer = Callable[[socket.socket], None]


def archive_bytes() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("images/a.txt", b"a" * 20_000)
    return buffer.getvalue()


GOOD = archive_bytes()
SHA256 = hashlib.sha256(GOOD).hexdigest()


def head(status: str = "200 OK", **fields: object) -> bytes:
    lines = [f"HTTP/1.1 {status}", *(f"{name.replace('_', '-')}: {value}" for name, value in fields.items())]
    return "\r\n".join([*lines, "Connection: close", "", ""]).encode()


def say(*parts: bytes) -> Answer:
    return lambda connection: connection.sendall(b"".join(parts))


def stall(*parts: bytes) -> Answer:
    """Send something, and then nothing: the test's end closes the connection."""

    def answer(connection: socket.socket) -> None:
        connection.sendall(b"".join(parts))
        connection.settimeout(20)
        connection.recv(1)

    return answer


def drip(start: bytes) -> Answer:
    """A byte now and then, for as long as anybody listens: never silent, and never done."""

    def answer(connection: socket.socket) -> None:
        connection.sendall(start)
        for _ in range(2000):
            connection.sendall(b"x")
            time.sleep(0.01)

    return answer


def reset(*parts: bytes) -> Answer:
    def answer(connection: socket.socket) -> None:
        connection.sendall(b"".join(parts))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    return answer


def redirect(to: str, code: int = 302) -> Answer:
    return say(head(f"{code} Moved", Location=to, Content_Length=0))


class Server:
    """Answers every request for a path with what `answers` says, 404 otherwise."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.answers: dict[str, Answer] = {}
        self.asked: list[str] = []
        self.context = context
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.threads = [threading.Thread(target=self._serve, daemon=True)]
        self.threads[0].start()

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http{'s' * bool(self.context)}://{host}:{self.port}{path}"

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.socket.accept()
                self.threads.append(threading.Thread(target=self._serve_one, args=(connection,), daemon=True))
                self.threads[-1].start()

    def close(self) -> None:
        self.socket.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits for a connection
        for thread in self.threads:
            thread.join()
        self.socket.close()

    def _serve_one(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            if self.context:
                with self.context.wrap_socket(connection, server_side=True) as wrapped:
                    self._answer(wrapped)
            else:
                self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        request = b""
        while b"\r\n\r\n" not in request:
            request += connection.recv(65536) or b"\r\n\r\n"
        path = request.split(b" ")[1].decode() if request.startswith(b"GET ") else ""
        self.asked.append(path)
        self.answers.get(path, say(head("404 Not Found", Content_Length=0)))(connection)


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for localhost and its key, made for this test and trusted by nobody else."""
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("tls")
    key, file = folder / "key.pem", folder / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        + ["-keyout", str(key), "-out", str(file), "-days", "2", "-subj", "/CN=localhost"]
        + ["-addext", "subjectAltName=DNS:localhost"],
        check=True,
        capture_output=True,
    )
    return file, key


@pytest.fixture
def secure(certificate: tuple[Path, Path]) -> Iterator[Server]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    server = Server(context)
    yield server
    server.close()


HUGE = 1 << 60
LIES = {
    "404": (say(head("404 Not Found", Content_Length=0)), "can't be fetched: Not Found"),
    "500": (say(head("500 Oops", Content_Length=0)), "can't be fetched: Oops"),
    "status of no number": (say(b"HTTP/1.1 two hundred\r\n\r\n"), "can't be fetched"),
    "no http": (say(b"SSH-2.0-OpenSSH_9.6\r\n"), "can't be fetched"),
    "nothing": (say(b""), "can't be fetched"),
    "endless head": (say(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000), "can't be fetched: .*"),
    "many fields": (say(b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 300 + b"\r\n"), "can't be fetched: .*headers"),
    "escapes": (say(b"HTTP/1.1 500 \x1b[2J\x07\r\nContent-Length: 0\r\n\r\n"), "can't be fetched"),
    "truncated": (say(head(Content_Length=len(GOOD)), GOOD[:-500]), r"[\d,]+ bytes came where [\d,]+ were to come"),
    "nothing of it": (say(head(Content_Length=len(GOOD))), "0 bytes came where"),
    "too long a length": (say(head(Content_Length=len(GOOD) + 5), GOOD), "bytes came where"),
    "too short a length": (say(head(Content_Length=len(GOOD) - 5), GOOD), "neither a zip|a damaged archive"),
    "more than fits": (say(head(Content_Length=HUGE)), "needs 1152921504.6 GB"),
    "negative length": (say(head(Content_Length=-5), GOOD[:-9]), "neither a zip|a damaged archive|were to come"),
    "length of no number": (say(head(Content_Length="²"), GOOD[:-9]), "neither a zip|a damaged archive|can't be"),
    "broken chunks": (say(head(Transfer_Encoding="chunked"), b"ffff\r\nabc"), "can't be fetched"),
    "chunks of no number": (say(head(Transfer_Encoding="chunked"), b"xyz\r\nabc\r\n"), "can't be fetched"),
    "reset": (reset(head(Content_Length=len(GOOD)), GOOD[:500]), "can't be fetched|bytes came where"),
    "reset at once": (reset(), "can't be fetched"),
    "stalled head": (stall(b"HTTP/1.1 200 OK\r\n"), "can't be fetched: .*timed out"),
    "stalled body": (stall(head(Content_Length=len(GOOD)), GOOD[:500]), "can't be fetched: .*timed out"),
    "dripping": (drip(head(Content_Length=len(GOOD))), "can't be fetched: less than 1024 bytes a second came"),
    "web page": (say(head(Content_Type="text/html"), b"<html>log in</html>"), "neither a zip .* but a web page"),
    "other bytes": (say(head(), b"x" * 5000), "neither a zip nor a tar archive"),
    "zeros": (say(head(), bytes(5000)), "no files in its folder"),  # an empty tar
    "to a file": (redirect("file:///etc/passwd"), "'file:///etc/passwd' is not allowed"),
    "to ftp": (redirect("ftp://127.0.0.1/x"), "only https is fetched"),
    "to data": (redirect("data:text/plain,hello"), "'data:text/plain,hello' is not allowed"),
    "to nowhere": (redirect("http://"), "can't be fetched"),
    "to a bad port": (redirect("http://127.0.0.1:99999999/x"), "can't be fetched"),
    "to half an address": (redirect("http://[::1"), "can't be fetched"),
    "to a control character": (redirect("/a\x01b"), "can't be fetched"),
    "round and round": (redirect("/set.zip"), "can't be fetched: .*infinite loop"),
    "redirect without a place": (say(head("302 Moved", Content_Length=0)), "can't be fetched: Moved"),
}


@pytest.mark.parametrize("name", LIES)
def test_a_server_that_lies(name: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data.download, "TIMEOUT", 0.3)
    server.answers["/set.zip"], words = LIES[name]
    with pytest.raises(UserError, match=words) as fault:
        fetch([Archive(server.url("/set.zip"))], tmp_path / "set", allow_http=True)
    assert "\n" not in str(fault.value) and len(str(fault.value)) < 1000
    assert not list(tmp_path.iterdir()), "neither the data set nor a part of it nor a working folder"


def test_a_decent_server_with_and_without_a_length(server: Server, tmp_path: Path) -> None:
    chunks = b"".join(f"{len(GOOD[i : i + 999]):x}\r\n".encode() + GOOD[i : i + 999] + b"\r\n" for i in range(0, len(GOOD), 999))  # fmt: skip # noqa: E501
    server.answers = {
        "/length.zip": say(head(Content_Length=len(GOOD)), GOOD),
        "/none.zip": say(head(), GOOD),
        "/chunks.zip": say(head(Transfer_Encoding="chunked"), chunks, b"0\r\n\r\n"),
        "/moved.zip": redirect(server.url("/length.zip"), 301),
    }
    for path in server.answers:
        fetch([Archive(server.url(path), SHA256, len(GOOD))], tmp_path / path[1:-4], allow_http=True)
        assert (tmp_path / path[1:-4] / "a.txt").read_bytes() == b"a" * 20_000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chunks", "length", "moved", "none"]


def test_what_a_yaml_pins_is_held(server: Server, tmp_path: Path) -> None:
    server.answers["/set.zip"] = say(head(Content_Length=len(GOOD)), GOOD)
    server.answers["/endless.zip"] = say(head(), GOOD * 50)
    wrong = [
        (Archive(server.url("/set.zip"), sha256="0" * 64), "the sha256 of what came is"),
        (Archive(server.url("/set.zip"), size=len(GOOD) - 1), "more than .* bytes came where"),
        (Archive(server.url("/endless.zip"), size=len(GOOD)), "more than .* bytes came where"),
    ]
    for archive, words in wrong:
        with pytest.raises(UserError, match=words):
            fetch([archive], tmp_path / "set", allow_http=True)
        assert not list(tmp_path.iterdir())


def test_an_endless_answer_ends_where_the_disk_does(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.answers["/set.zip"] = say(head(), GOOD * 50)
    monkeypatch.setattr(data.download, "check_space", lambda *_: len(GOOD))
    with pytest.raises(UserError, match="more came than the 0.0 GB that are free"):
        fetch([Archive(server.url("/set.zip"))], tmp_path / "set", allow_http=True)
    assert not list(tmp_path.iterdir())


def test_plain_http_only_with_a_sha256(server: Server, tmp_path: Path) -> None:
    server.answers["/set.zip"] = say(head(Content_Length=len(GOOD)), GOOD)
    with pytest.raises(UserError, match="only https is fetched, and http where the yaml gives a sha256"):
        fetch([Archive(server.url("/set.zip"))], tmp_path / "set")
    assert not server.asked and not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="the sha256 of what came"):
        fetch([Archive(server.url("/set.zip"), "0" * 64)], tmp_path / "set")
    fetch([Archive(server.url("/set.zip"), SHA256)], tmp_path / "set")
    assert (tmp_path / "set/a.txt").is_file()


def test_https_with_a_certificate_that_is_trusted(
    secure: Server, server: Server, certificate: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secure.answers = {
        "/set.zip": say(head(Content_Length=len(GOOD)), GOOD),
        "/down.zip": redirect(server.url("/set.zip")),
        "/along.zip": redirect("/set.zip", 307),
        "/cut.zip": say(head(Content_Length=len(GOOD)), GOOD[:99]),
    }
    server.answers["/set.zip"] = secure.answers["/set.zip"]
    with pytest.raises(UserError, match="can't be fetched: .*certificate verify failed"):
        fetch([Archive(secure.url("/set.zip", "localhost"))], tmp_path / "set")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    with pytest.raises(UserError, match="can't be fetched: .*(IP address mismatch|certificate)"):
        fetch([Archive(secure.url("/set.zip"))], tmp_path / "set")  # the certificate is not for 127.0.0.1
    with pytest.raises(UserError, match="http://.*: only https is fetched"):
        fetch([Archive(secure.url("/down.zip", "localhost"))], tmp_path / "set")
    assert not server.asked, "a redirect to plain http is not followed"
    with pytest.raises(UserError, match="99 bytes came where"):
        fetch([Archive(secure.url("/cut.zip", "localhost"))], tmp_path / "set")
    assert not list(tmp_path.iterdir())
    for path in ("/set.zip", "/along.zip"):
        fetch([Archive(secure.url(path, "localhost"))], tmp_path / path[1:])
        assert (tmp_path / path[1:] / "a.txt").is_file()


@pytest.mark.parametrize(
    "url",
    [
        *("https://", "https://[::1", "https://a b/x", "https://exa\nmple/x", "https://127.0.0.1:x/y", "https:x"),
        *("https://" + "a" * 300 + "/x", "https://ü" * 70, "https://127.0.0.1:99999999/", "http//x", "", "//x/y"),
        *("HTTP://127.0.0.1:9/x", "jar:https://x", "\x00", "https://\udcff/"),
    ],
)
def test_a_url_that_is_none(url: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as fault:
        fetch([Archive(url)], tmp_path / "set")
    assert "can't be fetched" in str(fault.value) or "only https" in str(fault.value)
    assert not list(tmp_path.iterdir())


def test_an_archive_that_cannot_be_unpacked_is_fetched_anew(server: Server, tmp_path: Path) -> None:
    """What is kept for a second try is what was unpacked without fault."""
    server.answers["/1.zip"] = say(head(), GOOD)
    server.answers["/2.zip"] = say(head(), b"<html>busy</html>")
    archives = [Archive(server.url("/1.zip"), to="one"), Archive(server.url("/2.zip"), to="two")]
    with pytest.raises(UserError, match="a web page"):
        fetch(archives, tmp_path / "set", allow_http=True)
    assert [path.name for path in tmp_path.iterdir()] == [".set.download"]
    assert [path.name[9:] for path in (tmp_path / ".set.download").iterdir()] == ["1.zip"]
    server.answers["/2.zip"] = say(head(), GOOD)
    fetch(archives, tmp_path / "set", allow_http=True)
    assert server.asked == ["/1.zip", "/2.zip", "/2.zip"]
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_nothing_is_written_over_a_link_to_nowhere(server: Server, tmp_path: Path) -> None:
    (tmp_path / "set").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="exists already"):
        fetch([Archive(server.url("/set.zip"))], tmp_path / "set", allow_http=True)
    assert not server.asked


def test_without_the_flag_nothing_is_asked(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.answers["/set.zip"] = say(head(), GOOD)
    monkeypatch.setattr(data.config, "fetch", functools.partial(fetch, allow_http=True))
    file = tmp_path / "data.yaml"
    file.write_text(f"path: set\ntrain: .\nnames: [a]\ndownload: {server.url('/set.zip')}\n")
    with pytest.raises(UserError, match="add --download to fetch"):
        load_data_config(file).split("train")
    assert not server.asked and [path.name for path in tmp_path.iterdir()] == ["data.yaml"]
    load_data_config(file, download=True).split("train")
    assert server.asked == ["/set.zip"]

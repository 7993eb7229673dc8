"""Downloads from a server of our own on 127.0.0.1: whole or not at all, and nothing outside the folder."""

from __future__ import annotations

import hashlib
import http.server
import io
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from data.download import Archive, _Redirects, fetch, fetch_file
from tests.archives import tarred, tree, zipped
from utils.errors import UserError


class Server(http.server.ThreadingHTTPServer):
    """Serves `files` by path; a str is a redirect to it; of the paths in `short` the second half never comes."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes | str] = {}
        self.short: set[str] = set()
        self.asked: list[str] = []

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}{path}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        content = self.server.files.get(self.path)
        if content is None:
            self.send_error(404)
            return
        self.send_response(302 if isinstance(content, str) else 200)
        if isinstance(content, str):
            self.send_header("Location", content)
            self.end_headers()
            return
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if self.path in self.server.short else content)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def test_several_archives_become_one_folder(server: Server, tmp_path: Path) -> None:
    server.files = {
        "/one.zip": zipped({"top/a/1.txt": b"1", "top/2.txt": b"2"}),
        "/two.tar": tarred({"top/a/3.txt": b"3", "top/b/4.txt": b"4"}, mode="w"),
        "/three.tgz": tarred({"x/wanted/5.txt": b"5", "x/other/6.txt": b"6", "x/wanted too/7.txt": b"7"}),
        "/flat.zip": zipped({"8.txt": b"8", "c/9.txt": b"9"}),
    }
    archives = [
        Archive(server.url("/one.zip")),
        Archive(server.url("/two.tar")),
        Archive(server.url("/three.tgz"), folder="x/wanted", to="in/here"),
        Archive(server.url("/flat.zip"), to="flat"),
    ]
    fetch(archives, tmp_path / "new/set", allow_http=True)
    assert tree(tmp_path) == {
        "new/set/a/1.txt": b"1",
        "new/set/2.txt": b"2",
        "new/set/a/3.txt": b"3",
        "new/set/b/4.txt": b"4",
        "new/set/in/here/5.txt": b"5",
        "new/set/flat/8.txt": b"8",
        "new/set/flat/c/9.txt": b"9",
    }
    with pytest.raises(UserError, match="exists already"):
        fetch(archives, tmp_path / "new/set", allow_http=True)


def test_a_second_try_goes_on_with_what_is_missing(server: Server, tmp_path: Path) -> None:
    server.files = {"/1.zip": zipped({"a.txt": b"a"}), "/2.zip": zipped({"b.txt": b"b"})}
    server.short = {"/2.zip"}
    archives = [Archive(server.url("/1.zip")), Archive(server.url("/2.zip"))]
    with pytest.raises(UserError, match=r"2.zip: [\d,]+ bytes came where [\d,]+ were to come; try again"):
        fetch(archives, tmp_path / "set", allow_http=True)
    assert not (tmp_path / "set").exists()
    server.short = set()
    fetch(archives, tmp_path / "set", allow_http=True)
    assert tree(tmp_path) == {"set/a.txt": b"a", "set/b.txt": b"b"}
    assert server.asked == ["/1.zip", "/2.zip", "/2.zip"]


def test_size_and_sha256_are_checked(server: Server, tmp_path: Path) -> None:
    content = bytes(range(256)) * 20_000  # several blocks
    digest = hashlib.sha256(content).hexdigest()
    server.files = {"/f": content}
    url = server.url("/f")
    wrong = [
        (Archive(url, sha256="0" * 64), f"the sha256 of what came is {digest}, not 000"),
        (Archive(url, size=len(content) + 1), "5,120,000 bytes came where 5,120,001 were to come"),
        (Archive(url, size=10), "more than .* bytes came where 10 were to come"),
        (Archive(url, size=1 << 60), "needs 1152921504.6 GB"),
    ]
    for archive, message in wrong:
        with pytest.raises(UserError, match=message):
            fetch_file(archive, tmp_path / "f", allow_http=True)
        assert not (tmp_path / "f").exists()
    fetch_file(Archive(url, sha256=digest, size=len(content)), tmp_path / "f", allow_http=True)
    assert tree(tmp_path) == {"f": content}


def test_only_https_is_fetched_also_after_a_redirect(server: Server, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    server.files = {"/f": b"1", "/to_file": f"file://{tmp_path}/secret", "/to_ftp": "ftp://127.0.0.1/x", "/to_f": "/f"}
    for url in (server.url("/f"), f"file://{tmp_path}/secret", "ftp://127.0.0.1/x", "secret"):
        with pytest.raises(UserError, match="only https is fetched"):
            fetch_file(Archive(url), tmp_path / "got")
    assert not server.asked
    for path in ("/to_file", "/to_ftp"):
        with pytest.raises(UserError, match="only https is fetched|file:.* is not allowed"):
            fetch_file(Archive(server.url(path)), tmp_path / "got", allow_http=True)
    request = urllib.request.Request("https://example.org/f")
    with pytest.raises(UserError, match="http://example.org/g: only https is fetched"):
        _Redirects(False).redirect_request(request, io.BytesIO(), 302, "Found", {}, "http://example.org/g")
    fetch_file(Archive(server.url("/to_f")), tmp_path / "got", allow_http=True)
    assert (tmp_path / "got").read_bytes() == b"1"


def test_a_server_that_is_not_there_or_says_no(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="/none.zip: can't be fetched: Not Found"):
        fetch([Archive(server.url("/none.zip"))], tmp_path / "set", allow_http=True)
    with pytest.raises(UserError, match="can't be fetched: .*refused"):
        fetch([Archive("http://127.0.0.1:9/x.zip")], tmp_path / "set", allow_http=True)
    assert not (tmp_path / "set").exists()

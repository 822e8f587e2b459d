"""Files of registries: checked by hash, kept in one step, refused in a sentence. No network: registries are faked.

npm and apt-get are fakes on PATH; pip is the real one, pointed at a folder of wheels by its own configuration.
"""

import hashlib
import http.server
import os
import subprocess
import sys
import tarfile
import threading
import zipfile
from pathlib import Path

import pytest

from moe_prompt.errors import InputError
from moe_prompt.vision.downloads import registries
from moe_prompt.vision.downloads.registries import DebianFile, NpmFile, PyPIFile, UrlFile, cache_dir
from moe_prompt.vision.downloads.transports import last_words

CONTENT = bytes(range(256)) * 1009
SHA256 = hashlib.sha256(CONTENT).hexdigest()
PACKAGE = NpmFile("a-package", "1.2.3", "a-package-1.2.3.tgz", SHA256)
DEBIAN = DebianFile("a-data", "1.2-3", "a-data_1.2-3_all.deb", SHA256, "pool/main/a/a-data")


@pytest.fixture(autouse=True)
def no_registry(tmp_path, monkeypatch):
    """An empty PATH, an empty cache, pip without an index."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("MOE_PROMPT_CACHE", str(tmp_path / "cache"))
    for name in (registries.NPM_VARIABLE, registries.DEBIAN_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def command(tmp_path: Path, name: str, body: str) -> Path:
    """A fake command on PATH, in Python; it notes its arguments beside itself."""
    path = tmp_path / "bin" / name
    noted = tmp_path / f"{name}.calls"
    head = (
        f"#!{sys.executable}\nimport os, sys, signal\nopen({str(noted)!r}, 'a').write(' '.join(sys.argv[1:]) + '\\n')\n"
    )
    path.write_text(head + body)
    path.chmod(0o755)
    return noted


def writes(name: str, content: bytes = CONTENT) -> str:
    return f"open({name!r}, 'wb').write(bytes.fromhex({content.hex()!r}))\n"


def left(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() or "fetch" in path.name)


def test_npm_brings_the_file_once(tmp_path):
    noted = command(tmp_path, "npm", writes("a-package-1.2.3.tgz"))
    said: list[str] = []
    path = PACKAGE.fetch(progress=said.append)
    assert path.read_bytes() == CONTENT and path.name == "a-package-1.2.3.tgz"
    assert path.is_relative_to(tmp_path / "cache") and left(tmp_path / "cache") == [
        str(path.relative_to(tmp_path / "cache"))
    ]
    assert noted.read_text() == "pack --ignore-scripts --loglevel=error a-package@1.2.3\n"
    assert said == ["fetching a-package 1.2.3 of the npm registry"]
    assert PACKAGE.fetch(progress=said.append) == path  # from the cache: nobody asked, nothing said
    assert len(noted.read_text().splitlines()) == 1 and len(said) == 1


def test_a_folder_of_ones_own(tmp_path):
    command(tmp_path, "npm", writes("a-package-1.2.3.tgz"))
    assert PACKAGE.fetch(tmp_path / "mine") == tmp_path / "mine" / "a-package-1.2.3.tgz"
    assert not (tmp_path / "cache").exists()


def test_another_hash_is_refused_and_not_kept(tmp_path):
    command(tmp_path, "npm", writes("a-package-1.2.3.tgz", CONTENT[:-1]))
    got = hashlib.sha256(CONTENT[:-1]).hexdigest()
    with pytest.raises(InputError, match=f"a-package 1.2.3 .*its sha256 is {got}, {SHA256} was required"):
        PACKAGE.fetch()
    assert left(tmp_path / "cache") == []


def test_a_damaged_file_in_the_cache_is_fetched_again(tmp_path):
    command(tmp_path, "npm", writes("a-package-1.2.3.tgz"))
    path = PACKAGE.fetch()
    path.write_bytes(CONTENT[:1000])
    assert PACKAGE.fetch().read_bytes() == CONTENT


def test_an_unreachable_registry_is_a_sentence(tmp_path):
    body = "sys.stderr.write('npm error code EAI_AGAIN\\nnpm error network no such host\\n"
    command(tmp_path, "npm", body + "npm error A complete log of this run can be found in: x\\n'); sys.exit(1)")
    with pytest.raises(InputError) as refused:
        PACKAGE.fetch()
    sentence = str(refused.value)
    assert "a-package 1.2.3 of the npm registry could not be fetched (npm error network no such host): " in sentence
    assert "give it with --file" in sentence and "\n" not in sentence


def test_without_the_tool_the_sentence_says_how_to_get_it():
    with pytest.raises(InputError, match=r"tool for it is not installed\): install npm .* npm_config_registry"):
        PACKAGE.fetch()
    with pytest.raises(InputError, match=r"not installed\): run apt-get update .* MOE_PROMPT_DEBIAN_MIRROR"):
        DEBIAN.fetch()


def test_a_tool_that_is_killed_half_way_leaves_nothing(tmp_path):
    half = writes("a-package-1.2.3.tgz", CONTENT[:500]) + "os.kill(os.getpid(), signal.SIGKILL)"
    command(tmp_path, "npm", half)
    with pytest.raises(InputError, match="could not be fetched"):
        PACKAGE.fetch()
    assert left(tmp_path / "cache") == []


def test_a_tool_that_brings_something_else_is_told(tmp_path):
    command(tmp_path, "npm", writes("other.tgz"))
    with pytest.raises(InputError, match=r"it brought \['other.tgz'\], not a-package-1.2.3.tgz"):
        PACKAGE.fetch()


def test_without_npm_a_registry_of_the_user_is_asked(tmp_path, monkeypatch):
    (tmp_path / "registry" / "a-package" / "-").mkdir(parents=True)
    (tmp_path / "registry" / "a-package" / "-" / "a-package-1.2.3.tgz").write_bytes(CONTENT)
    monkeypatch.setenv("npm_config_registry", (tmp_path / "registry").as_uri() + "/")
    assert PACKAGE.fetch().read_bytes() == CONTENT


def test_debian_by_apt_and_else_by_a_mirror(tmp_path, monkeypatch):
    noted = command(tmp_path, "apt-get", "sys.stderr.write('E: Unable to locate package a-data\\n'); sys.exit(100)")
    with pytest.raises(
        InputError, match=r"could not be fetched .E: Unable to locate package a-data.: run apt-get update"
    ):
        DEBIAN.fetch()
    assert noted.read_text() == "download --quiet a-data=1.2-3\n"
    pool = tmp_path / "mirror" / "pool" / "main" / "a" / "a-data"
    pool.mkdir(parents=True)
    (pool / "a-data_1.2-3_all.deb").write_bytes(CONTENT)
    monkeypatch.setenv("MOE_PROMPT_DEBIAN_MIRROR", (tmp_path / "mirror").as_uri())
    assert DEBIAN.fetch().read_bytes() == CONTENT
    command(tmp_path, "apt-get", writes("a-data_1.2-3_all.deb"))
    assert DEBIAN.fetch(tmp_path / "mine").read_bytes() == CONTENT


def wheel(folder: Path, name: str = "a_set-0.1-py3-none-any.whl") -> PyPIFile:
    folder.mkdir()
    with zipfile.ZipFile(folder / name, "w") as archive:
        # needs a Python that is not there and a package that does not exist: neither matters to a file
        lines = (
            "Metadata-Version: 2.1\nName: a-set\nVersion: 0.1\nRequires-Python: <3\nRequires-Dist: no-such-package\n"
        )
        archive.writestr("a_set-0.1.dist-info/METADATA", lines)
        archive.writestr("a_set-0.1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("a_set-0.1.dist-info/RECORD", "")
        archive.writestr("a_set/__init__.py", "raise SystemExit('a wheel is a file: nothing of it is run')")
    return PyPIFile("a-set", "0.1", name, hashlib.sha256((folder / name).read_bytes()).hexdigest())


def test_a_wheel_comes_by_pip_under_the_users_configuration(tmp_path, monkeypatch):
    file = wheel(tmp_path / "index")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    path = file.fetch()
    assert path.read_bytes() == (tmp_path / "index" / file.filename).read_bytes()
    assert left(tmp_path / "cache") == [str(path.relative_to(tmp_path / "cache"))]


def test_a_source_archive_is_never_taken(tmp_path, monkeypatch):
    ran = tmp_path / "ran"
    source = tmp_path / "a-set-0.1"
    source.mkdir()
    (source / "setup.py").write_text(f"open({str(ran)!r}, 'w')\nfrom setuptools import setup\nsetup(name='a-set')\n")
    (tmp_path / "index").mkdir()
    with tarfile.open(tmp_path / "index" / "a-set-0.1.tar.gz", "w:gz") as archive:
        archive.add(source, "a-set-0.1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    with pytest.raises(InputError, match=r"a-set 0.1 of the Python package index could not be fetched \(ERROR: No"):
        PyPIFile("a-set", "0.1", "a_set-0.1-py3-none-any.whl", SHA256).fetch()
    assert not ran.exists()


def test_a_python_without_pip_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    with pytest.raises(InputError, match=r"could not be fetched \(.*No such file.*: connect to a package index"):
        PyPIFile("a-set", "0.1", "a_set-0.1-py3-none-any.whl", SHA256).fetch()


def test_two_processes_at_once(tmp_path):
    """Four of them fetch the same file; each finds it whole, and one copy is left."""
    (tmp_path / "source.bin").write_bytes(CONTENT * 40)
    sha256 = hashlib.sha256(CONTENT * 40).hexdigest()
    code = (
        "from moe_prompt.vision.downloads.registries import UrlFile, sha256_of\n"
        f"file = UrlFile({(tmp_path / 'source.bin').as_uri()!r}, {sha256!r})\n"
        "assert all(sha256_of(file.fetch()) == file.sha256 for _ in range(3))\n"
    )
    running = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(4)]
    assert [process.wait() for process in running] == [0] * 4
    assert len(left(tmp_path / "cache")) == 1


class Handler(http.server.BaseHTTPRequestHandler):
    """Promises the whole content, and breaks off unless asked for /whole.bin."""

    def do_GET(self):
        if self.path == "/absent.bin":
            return self.send_error(404)
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT if self.path.startswith("/whole.bin") else CONTENT[:1000])
        return None

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    """A server of this machine's own, on its loopback."""
    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{served.server_port}"
    served.shutdown()
    served.server_close()


def test_an_address(server, tmp_path):
    assert UrlFile(f"{server}/whole.bin?download=true", SHA256).fetch().name == "whole.bin"
    for name in ("broken.bin", "absent.bin"):
        with pytest.raises(InputError, match=name):
            UrlFile(f"{server}/{name}", SHA256).fetch(tmp_path / "mine")
    assert left(tmp_path / "mine") == []


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/a.bin", "no-address/a.bin"])
def test_an_unreachable_address(url):
    with pytest.raises(InputError, match=r"a.bin could not be fetched"):
        UrlFile(url, SHA256).fetch()


def test_a_file_of_the_users_stands_in(tmp_path):
    (tmp_path / "own.tgz").write_bytes(CONTENT)
    assert PACKAGE.accept(tmp_path / "own.tgz") == tmp_path / "own.tgz"
    (tmp_path / "own.tgz").write_bytes(CONTENT[1:])
    with pytest.raises(InputError, match=r"own.tgz is not a-package-1.2.3.tgz: its sha256 is"):
        PACKAGE.accept(tmp_path / "own.tgz")
    assert (tmp_path / "own.tgz").read_bytes() == CONTENT[1:]  # the user's, not ours to remove
    with pytest.raises(InputError, match="absent is not a file"):
        PACKAGE.accept(tmp_path / "absent")


def test_a_cache_that_cannot_be_written_is_a_sentence(tmp_path, monkeypatch):
    command(tmp_path, "npm", writes("a-package-1.2.3.tgz"))
    (tmp_path / "in the way").write_text("")
    monkeypatch.setenv("MOE_PROMPT_CACHE", str(tmp_path / "in the way"))
    with pytest.raises(InputError, match=r"cannot be written .*set MOE_PROMPT_CACHE"):
        PACKAGE.fetch()


def test_where_the_cache_is(tmp_path, monkeypatch):
    assert cache_dir() == tmp_path / "cache"
    monkeypatch.delenv("MOE_PROMPT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr(sys, "platform", "linux")
    assert cache_dir() == tmp_path / "xdg" / "moe_prompt"
    home = Path("/home/someone")
    assert registries._user_caches("linux", {}, home) == home / ".cache"
    assert registries._user_caches("darwin", {}, home) == home / "Library" / "Caches"
    assert registries._user_caches("win32", {"LOCALAPPDATA": "/local"}, home) == Path("/local")


def test_last_words():
    assert last_words("\n\n") == "" and last_words("one\ntwo.\n") == "two"
    assert last_words("W: careful\nE: not found\nW: still\n") == "E: not found"

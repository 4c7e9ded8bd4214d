import hashlib
import io
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from recipes.datasets.download import download

MARKER = "taggings.dat"


def archive(*names: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as stream:
        for name in names:
            stream.writestr(name, "content")
    return content.getvalue()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A web site on this machine: its address and its folder."""
    folder = tmp_path / "site"
    folder.mkdir()
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", folder
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("folder", ["", "inner/"])
def test_an_archive_is_downloaded_once_and_unpacked(
    site: tuple[str, Path], tmp_path: Path, folder: str
) -> None:
    address, files = site
    content = archive(f"{folder}readme.txt", f"{folder}{MARKER}")
    (files / "data.zip").write_bytes(content)
    md5 = hashlib.md5(content).hexdigest()
    found = download(f"{address}/data.zip", md5, MARKER, tmp_path / "cache")
    assert (found / MARKER).read_text() == "content"
    (files / "data.zip").unlink()
    assert download(f"{address}/data.zip", md5, MARKER, tmp_path / "cache") == found


def test_an_altered_archive_is_refused(site: tuple[str, Path], tmp_path: Path) -> None:
    address, files = site
    (files / "data.zip").write_bytes(archive(MARKER))
    with pytest.raises(ValueError, match="hash"):
        download(f"{address}/data.zip", "0" * 32, MARKER, tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob(MARKER))


def test_an_archive_without_the_file_is_refused(site: tuple[str, Path], tmp_path: Path) -> None:
    address, files = site
    content = archive("readme.txt")
    (files / "data.zip").write_bytes(content)
    with pytest.raises(FileNotFoundError, match=f"data.zip holds no {MARKER}"):
        download(
            f"{address}/data.zip", hashlib.md5(content).hexdigest(), MARKER, tmp_path / "cache"
        )


@pytest.mark.parametrize("path", ["data.zip", None])
def test_without_a_network_the_error_names_the_way_out(
    site: tuple[str, Path], tmp_path: Path, path: str | None
) -> None:
    url = f"{site[0]}/{path}" if path else "http://127.0.0.1:9/data.zip"
    with pytest.raises(FileNotFoundError, match=r"data\.zip cannot be .*--source"):
        download(url, "0" * 32, MARKER, tmp_path / "cache")

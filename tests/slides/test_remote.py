"""OME-Zarr by URL."""

import functools
import http.server
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from streamview.errors import SlideError
from streamview.geometry import Region
from streamview.slides import as_slide, open_slide
from streamview.slides.pyramid import build_pyramid

PIXELS = np.random.default_rng(0).integers(0, 256, (600, 700, 3), np.uint8)


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    build_pyramid(as_slide(PIXELS, 0.5), folder / "a.ome.zarr").close()
    return folder / "a.ome.zarr"


@pytest.fixture
def memory(local):
    """URL of a copy in fsspec's memory."""
    fsspec = pytest.importorskip("fsspec")
    files = fsspec.filesystem("memory")
    files.store.clear()
    for path in local.rglob("*"):
        if path.is_file():
            files.pipe(f"/bucket/a.ome.zarr/{path.relative_to(local)}", path.read_bytes())
    yield "memory://bucket/a.ome.zarr"
    files.store.clear()


@pytest.fixture(scope="module")
def served(local):
    pytest.importorskip("aiohttp", reason="the extra cluster is not installed: pip install 'streamview[cluster]'")

    class Ranges(http.server.SimpleHTTPRequestHandler):
        """Answers requests for parts of files, which the standard library's server does not."""

        def do_GET(self):
            path = Path(self.translate_path(self.path))
            if not path.is_file():
                return self.send_error(404)
            data, wanted = path.read_bytes(), self.headers.get("Range", "").removeprefix("bytes=")
            if wanted:
                first, _, last = wanted.partition("-")
                data = data[int(first) : int(last) + 1 if last else None] if first else data[-int(last) :]
            self.send_response(206 if wanted else 200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Ranges, directory=str(local.parent))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/a.ome.zarr"
        server.shutdown()


def check(url, local):
    with open_slide(url) as slide, open_slide(local) as expected:
        assert (slide.name, slide.shape, slide.mpp, slide.identity) == ("a.ome.zarr", (600, 700), (0.5, 0.5), expected.identity)
        assert slide.reader == "zarr v3 by URL"
        assert np.array_equal(slide.read(Region(100, 33, 450, 600)), PIXELS[100:550, 33:633])


def test_it_is_the_same_slide_from_memory(memory, local):
    check(memory, local)


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")  # of aiohttp at its end
def test_it_is_the_same_slide_by_http(served, local):
    check(served, local)
    with pytest.raises(SlideError, match=r"b\.ome\.zarr: not a zarr group that can be read"):
        open_slide(served.replace("a.ome", "b.ome"))


def test_a_lost_shard_is_named_when_its_part_is_read(memory):
    import fsspec

    fsspec.filesystem("memory").rm("/bucket/a.ome.zarr/0/c/0/0/0")
    with open_slide(memory) as slide, pytest.raises(SlideError, match=r"incomplete: level 0 has lost its shard \(0, 0, 0\)"):
        slide.read(Region(0, 0, 10, 10))


def test_without_the_extra_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(SlideError, match=r"a\.ome\.zarr: reading https URLs needs more .*pip install 'streamview\[cluster\]'"):
        open_slide("https://example.org/a.ome.zarr?token=secret")


def test_an_unknown_protocol_is_refused():
    pytest.importorskip("fsspec")
    with pytest.raises(SlideError, match="expected a URL of http, https or s3"):
        open_slide("nothing://example.org/a.ome.zarr")

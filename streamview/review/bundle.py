"""A session as one file to carry elsewhere, and the files of several readers made one again."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import tempfile
import zipfile
from contextlib import closing
from pathlib import Path

from streamview.errors import ReviewError
from streamview.files import atomic
from streamview.review.store import Store

__all__ = ["merge", "pack", "unpack"]

_SESSION, _MANIFEST, _FORMAT = "session.sqlite", "manifest.json", "streamview review session 1"
_LARGEST = 4 * 2**30  # bytes of a session that is unpacked


def pack(session: str | os.PathLike[str], out: str | os.PathLike[str]) -> Path:
    """Write a session as a zip with a manifest of hashes. It names its slides: it is for those who may know them.

    Raises
    ------
    ReviewError
        When the session is damaged, or `out` exists or cannot be written.
    """
    out = Path(out)
    if out.exists():
        raise ReviewError(f"{out}: exists; choose another name")
    with tempfile.TemporaryDirectory() as place, Store(session) as store, atomic.replacing(out) as temporary:
        store.check()
        snapshot = Path(place) / _SESSION
        with (
            closing(sqlite3.connect(f"{store.path.resolve().as_uri()}?mode=ro", uri=True)) as source,
            closing(sqlite3.connect(snapshot)) as copy,
        ):
            source.backup(copy)
            copy.execute("PRAGMA journal_mode=DELETE")
        manifest = {"format": _FORMAT, "id": store.settings["id"], "events": len(store.events()), "sha256": {_SESSION: _sha256(snapshot)}}
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(_MANIFEST, json.dumps(manifest, indent=2))
            archive.write(snapshot, _SESSION)
    return out


def unpack(archive: str | os.PathLike[str], out: str | os.PathLike[str]) -> Path:
    """Write the session of a zip to a file of its own.

    Raises
    ------
    ReviewError
        When the zip is none of `pack`, its hash differs, or `out` exists.
    """
    out = Path(out)
    if out.exists():
        raise ReviewError(f"{out}: exists; choose another name, or merge the zip into it")
    with atomic.replacing(out) as temporary:
        _extract(Path(archive), temporary)
    with Store(out) as store:
        store.check()
    return out


def merge(session: str | os.PathLike[str], other: str | os.PathLike[str]) -> int:
    """Add what another file of the same session holds, a session or a zip of one, and return how many events were new.

    Raises
    ------
    ReviewError
        When the other is of another session, or damaged. Nothing has then been added.
    """
    with tempfile.TemporaryDirectory() as place, Store(session) as store:
        path = Path(other)
        if zipfile.is_zipfile(path):
            path = Path(place) / _SESSION
            _extract(Path(other), path)
        with Store(path) as source:
            source.check()
            if source.settings != store.settings:
                raise ReviewError(f"{Path(other).name}: is of another session than {store.path.name}; merge files of one session")
            return store.add_missing(source.events())


def _extract(archive: Path, out: Path) -> None:
    try:
        with zipfile.ZipFile(archive) as opened:
            manifest = json.loads(opened.read(_MANIFEST))
            if manifest.get("format") != _FORMAT:
                raise ReviewError(f"{archive.name}: is no packed session of this version")
            if opened.getinfo(_SESSION).file_size > _LARGEST:
                raise ReviewError(f"{archive.name}: its session is larger than {_LARGEST // 2**30} GB")
            with opened.open(_SESSION) as source, out.open("wb") as target:
                while block := source.read(2**20):
                    target.write(block)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ReviewError(f"{archive.name}: is no packed session, or damaged: {error}") from error
    if _sha256(out) != manifest["sha256"][_SESSION]:
        raise ReviewError(f"{archive.name}: its session differs from the hash in its manifest; fetch the file again")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

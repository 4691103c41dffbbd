"""Where OME-Zarr images lie: in folders, zip files and at URLs; what is absent there, and which images a store holds."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import zarr
import zarr.errors
import zarr.storage
from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import WrapperStore

from streamview.errors import SlideError
from streamview.slides.checks import MAX_CHUNK

__all__ = ["Place", "Watched", "find_images", "find_place", "is_zarr", "is_zip", "split_zip"]

_METADATA = ("zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata")


class Watched(WrapperStore[Store]):
    """A store that remembers which chunks it was asked for and does not hold: zarr reads them as the fill value without a word."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.root = getattr(store, "root", None)
        self.absent: set[str] = set()

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """What a key holds; None, remembered, where it holds nothing."""
        value = await super().get(key, prototype, byte_range)
        if value is None and not key.endswith(_METADATA):
            self.absent.add(key)
        return value


@dataclass(frozen=True, slots=True)
class Place:
    """A zarr group in a store.

    Parameters
    ----------
    name
        Of the slide, for people and file names.
    store
        Which holds it.
    path
        Of the group in the store; empty for its root.
    keys
        How many chunk files lie in a folder of the store and below it, and whether a file is there; None at a URL, where neither is
        known without asking for each.
    """

    name: str
    store: Watched
    path: str
    keys: Keys | None

    @property
    def remote(self) -> bool:
        """Whether it is at a URL."""
        return self.keys is None


@dataclass(frozen=True, slots=True)
class Keys:
    """What a store on this machine holds: numbers of chunks by folder, relative to its root, and a test for one file."""

    counts: Mapping[str, int]
    exists: Callable[[str], bool]

    def below(self, path: str) -> int:
        """Chunk files in a folder and below it."""
        return sum(count for folder, count in self.counts.items() if folder == path or folder.startswith(f"{path}/"))


def is_zarr(path: Path) -> bool:
    """Whether a folder is the root of a zarr group."""
    return (path / "zarr.json").is_file() or (path / ".zgroup").is_file()


def is_zip(path: Path) -> bool:
    """Whether a file begins like a zip archive."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) in (b"PK\3\4", b"PK\5\6")


def split_zip(path: Path) -> tuple[Path, str] | None:
    """A zip archive and the path in it, where a path leads into one."""
    for archive in (path, *path.parents):
        if archive.exists():
            return (archive, "/".join(path.relative_to(archive).parts)) if is_zip(archive) else None
    return None


def find_place(place: str) -> Place:
    """Where a group lies that is named by its folder, a zip file, a path into one, or a URL.

    Raises
    ------
    SlideError
        When it reaches outside itself by links, holds special files, or the archive is damaged or holds no zarr group.
    """
    if "://" in place:
        return _remote(place)
    path = Path(os.path.abspath(place))
    archive = split_zip(path)
    if archive is not None:
        return _zipped(*archive)
    root = path  # the outermost group, whose name a part of it bears as well: "0" alone says nothing
    while root != root.parent and is_zarr(root.parent):
        root = root.parent
    keys = Keys(_survey(path), lambda key: (path / key).is_file())
    return Place("_".join((root.name, *path.relative_to(root).parts)), Watched(zarr.storage.LocalStore(path, read_only=True)), "", keys)


def find_images(root: zarr.Group, *, listing: bool) -> list[str]:
    """Paths, in a group, of the multiscale images that it holds: itself, those of its wells, or those in it as bioformats2raw lays them."""
    own = _ome(root)
    if "multiscales" in own:
        return [""]
    if "plate" in own:
        wells = [str(well["path"]) for well in own["plate"]["wells"]]
        return [f"{well}/{field}" for well in wells for field in _fields(root, well)]
    if "well" in own:
        return [str(image["path"]) for image in own["well"]["images"]]
    listed = _attributes(root, "OME").get("series") or own.get("series")
    if isinstance(listed, list):
        return [str(path) for path in listed]
    names = ["0"]  # at a URL, where folders cannot be listed
    if listing:
        names = sorted(dict(root.groups()), key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else 0, name))
    return [name for name in names if "multiscales" in _attributes(root, name)]


def _fields(root: zarr.Group, well: str) -> list[str]:
    images = _attributes(root, well).get("well", {}).get("images", [])
    return [str(image["path"]) for image in images]


def _attributes(root: zarr.Group, path: str) -> Mapping[str, Any]:
    """The OME attributes of a group in a group; none where there is none."""
    try:
        member = root[path]
    except (KeyError, zarr.errors.BaseZarrError):
        return {}
    return _ome(member) if isinstance(member, zarr.Group) else {}


def _ome(group: zarr.Group) -> Mapping[str, Any]:
    attributes = group.attrs.asdict()
    ome = attributes.get("ome", attributes)
    return ome if isinstance(ome, Mapping) else {}


def _remote(url: str) -> Place:
    name = PurePosixPath(url.partition("?")[0]).name
    if name.endswith((".zip", ".ozx")):
        raise SlideError(f"{name}: a zip file at a URL; expected an OME-Zarr folder there, or download the file")
    try:
        from fsspec.core import url_to_fs

        url_to_fs(url)
    except ImportError as error:
        raise SlideError(
            f"{name}: reading {url.partition('://')[0]} URLs needs more ({error}): pip install 'streamview[cluster]'"
        ) from None
    except ValueError as error:
        raise SlideError(f"{name}: {error}; expected a URL of http, https or s3, or a path") from None
    return Place(name, Watched(zarr.storage.FsspecStore.from_url(url, read_only=True)), "", None)


def _zipped(archive: Path, inside: str) -> Place:
    try:
        with zipfile.ZipFile(archive) as file:
            entries = [entry for entry in file.infolist() if not entry.is_dir()]
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise SlideError(f"{archive.name}: a damaged zip archive ({error}); copy or download it again") from None
    if any(entry.compress_type != zipfile.ZIP_STORED and entry.file_size > MAX_CHUNK for entry in entries):
        raise SlideError(f"{archive.name}: holds compressed files of more than {MAX_CHUNK >> 20} MiB; unpack it and open the folder")
    names = {entry.filename for entry in entries}
    inside = inside.strip("/")
    roots = [str(PurePosixPath(name).parent) for name in names if name.endswith(("zarr.json", ".zgroup"))]
    roots = [root for root in roots if root == inside or not inside or root.startswith(f"{inside}/")]
    if not roots:
        shown = ", ".join(sorted(names)[:3])
        raise SlideError(
            f"{archive.name}: a zip archive without an OME-Zarr image{f' in {inside}' if inside else ''} ({shown or 'empty'});"
            " unpack it and open the slide inside"
        )
    path = inside or min(roots, key=lambda root: (len(PurePosixPath(root).parts), root))
    path = "" if path == "." else path
    counts: dict[str, int] = {}
    for name in names:
        if not name.endswith(_METADATA):
            folder = str(PurePosixPath(name).parent)
            counts[folder] = counts.get(folder, 0) + 1
    store = Watched(zarr.storage.ZipStore(archive, mode="r", read_only=True))
    return Place("_".join((archive.name, *PurePosixPath(inside).parts)), store, path, Keys(counts, names.__contains__))


def _survey(root: Path) -> dict[str, int]:
    """Numbers of chunk files by folder; links that leave the root and special files, which might never end, are refused."""
    inside, counts = root.resolve(), dict[str, int]()
    folders = [root] if root.is_dir() else []
    while folders:
        folder = folders.pop()
        number = 0
        with os.scandir(folder) as entries:
            for entry in entries:
                path = Path(entry.path)
                if entry.is_symlink() and not path.resolve().is_relative_to(inside):
                    raise SlideError(
                        f"{root.name}: {path.relative_to(root)} is a link that leaves the folder; replace it by the file itself"
                    )
                if entry.is_dir(follow_symlinks=False):
                    folders.append(path)
                elif path.exists() and not path.is_dir() and not path.is_file():
                    raise SlideError(f"{root.name}: {path.relative_to(root)} is no file but a pipe or device; remove it")
                else:
                    number += not entry.name.endswith(_METADATA) and not entry.name.startswith(".")
        counts[folder.relative_to(root).as_posix()] = number
    return counts

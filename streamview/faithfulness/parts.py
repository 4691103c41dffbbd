"""Finished measurements, kept so that a stopped run goes on from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from streamview.faithfulness.result import finite
from streamview.files import atomic
from streamview.files.resumable import Journal

__all__ = ["Parts"]


class Parts:
    """Finished measurements by name: in memory, and where there is a journal, in a JSON file each.

    Parameters
    ----------
    journal
        Of the folder that holds them; None keeps them in memory.
    """

    def __init__(self, journal: Journal | None = None) -> None:
        self._journal, self._values = journal, dict[str, Any]()
        if journal is not None:
            for name in journal.finished:
                self._values[name.removesuffix(".json")] = json.loads((journal.folder / name).read_text(encoding="utf-8"))

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def put(self, name: str, values: Any) -> None:
        """Keep a finished measurement, plain JSON values.

        Raises
        ------
        StreamviewError
            When it cannot be written.
        """
        self._values[name] = finite(values)
        if self._journal is not None:
            self.write(name, self._values[name])

    def write(self, name: str, values: Any) -> Path:
        """Write a JSON file beside the measurements, and return its path."""
        if self._journal is None:
            raise ValueError(f"{name}: there is no folder to write to")
        path = self._journal.folder / f"{name}.json"
        atomic.write_text(path, json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
        self._journal.add(path.name)
        return path

    @property
    def scratch(self) -> Path | None:
        """A folder on the same disk for maps that are thrown away; None: the system's."""
        return None if self._journal is None else self._journal.folder.parent

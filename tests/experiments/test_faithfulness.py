"""The experiment's command runs from tiles to picture and table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments.faithfulness import __main__ as command
from tests.experiments.test_camelyon16_tiles import textured


@pytest.mark.slow
def test_the_command_writes_the_table_between_its_marks_and_the_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for label, period in (("normal", 12), ("tumor", 40)):
        (tmp_path / "tiles" / label).mkdir(parents=True)
        for number, tile in enumerate(textured(period, 3, 0)):
            Image.fromarray(tile).save(tmp_path / "tiles" / label / f"{command.TEST}_{number}_0.png")
    (tmp_path / "images").mkdir()
    (tmp_path / "faithfulness.md").write_text(f"before\n{command.BEGIN}\nold\n{command.END}\nafter\n")
    monkeypatch.setattr("sys.argv", ["x", "--tiles", str(tmp_path / "tiles"), "--docs", str(tmp_path), "--size", "512", "--quick"])
    command.main()
    text = (tmp_path / "faithfulness.md").read_text()
    assert text.startswith(f"before\n{command.BEGIN}\n| network, map |")
    assert text.endswith(f"{command.END}\nafter\n")
    assert "old" not in text
    assert text.count("| edge detector (control) |") == 2
    assert "**1.00** fails" in text
    assert np.asarray(Image.open(tmp_path / "images" / "faithfulness.png")).std() > 10

"""Small inputs that failed in the field, made by a script that is not part of the project."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

_CASES = Path(__file__).resolve().parents[2] / "../shared/cases"


def _script(name: str) -> Path:
    script = _CASES / name
    if not script.is_file():
        pytest.skip(f"no {name} at {_CASES}")
    return script


@pytest.fixture(scope="session")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with one folder a kind, such as ``01-subifd-pyramids``; not to be changed."""
    folder = tmp_path_factory.mktemp("cases")
    subprocess.run([sys.executable, _script("make_cases.py"), folder], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="session")
def engine_cases() -> ModuleType:
    """The script of networks; its functions return one line each."""
    spec = importlib.util.spec_from_file_location("engine_cases", _script("engine_cases.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

"""What tests share: networks, slides, oracles, and libraries that may be missing. No tests, and no fixtures, which are in `conftest.py`."""

"""The network `camelyon16-tiles`: trained on regions composed of real H&E tiles, tested on a source slide that no training saw."""

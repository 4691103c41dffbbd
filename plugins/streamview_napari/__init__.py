"""The napari plugin of streamview: a thin shell over the core."""

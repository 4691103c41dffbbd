"""What is drawn in the viewer: layers of slides, maps and regions, captions, and the camera; without Qt."""

__all__: list[str] = []

"""What the panels ask of the core, and what they say of its answers: values and functions without napari or Qt."""

__all__: list[str] = []

"""Export results as pictures, and as files that QuPath, Fiji and zarr readers open in the right place."""

__all__: list[str] = []

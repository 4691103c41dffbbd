"""Results in other forms: pictures, and files that QuPath, Fiji and zarr readers open in place."""

__all__: list[str] = []

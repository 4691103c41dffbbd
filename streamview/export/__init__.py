"""Results in other forms: pictures now, files for other programs later."""

__all__: list[str] = []

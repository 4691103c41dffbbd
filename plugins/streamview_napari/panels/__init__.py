"""The dock and its sections: Qt controls over `requests`, `canvas`, `tasks` and `state`."""

__all__: list[str] = []

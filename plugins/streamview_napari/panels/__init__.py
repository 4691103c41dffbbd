"""The dock and its sections: thin widgets over `requests`, `canvas` and the one `State`."""

"""The networks that come with streamview: `MODELS` maps an id to its builder."""

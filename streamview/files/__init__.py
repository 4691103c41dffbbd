"""Files: written whole or not at all, recognised by their first bytes, read as tables, and work on them that survives being killed."""

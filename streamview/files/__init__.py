"""Files: atomic writes, recognition by the first bytes, tables, and resumable work on folders."""

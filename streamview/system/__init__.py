"""The machine: its devices, memory and disk, the installed versions, and what is missing."""

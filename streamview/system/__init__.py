"""The machine: its devices, memory and disk, the versions of what is installed, and what is missing."""

"""Many slides in one run, of which a bad one does not stop the rest."""

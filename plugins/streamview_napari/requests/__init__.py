"""What the panels ask of the core, and what they say of the answers: pure, so that all of it is tested without a window."""

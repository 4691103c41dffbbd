"""Review sessions: what readers answered with and without the AI, and the statistics of it."""

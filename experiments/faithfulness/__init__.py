"""Which maps pass the checks of faithfulness, beside two that must not: an edge detector, and random values."""

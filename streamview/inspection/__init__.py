"""What can be said of a network: whether and how it streams, what it will take, and that the streamed pass is exact."""

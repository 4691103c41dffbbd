"""From a module to the graph that is streamed: traced, lowered to operations, divided into passes and head, checked against the module."""

"""Section 5 of the paper: a network trained by streaming is the network that conventional training gives."""

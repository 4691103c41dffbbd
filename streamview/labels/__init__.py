"""Labels of regions for training and evaluation, and annotations drawn in other programs."""

"""What people say of regions: labels for training and evaluation, and annotations drawn in other programs."""

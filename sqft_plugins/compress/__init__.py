"""Making the base: finding the layers, calibration text, pruning, INT4."""

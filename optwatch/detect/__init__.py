"""Detectors: columns in, findings out. One file each: pure, streaming, no I/O."""

"""Columns over steps: points, rings, decimation, and merging across ranks."""

"""Finished logs of a training, in whatever form they lie there, as points for the detectors."""

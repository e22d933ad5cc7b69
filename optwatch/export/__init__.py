"""History out: TensorBoard."""

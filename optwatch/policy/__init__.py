"""From findings to commands: modes, guard rails, and what came of them."""

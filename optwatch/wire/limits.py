"""Caps on everything that comes from a wire: a length is checked here before anything is allocated."""

PROTOCOL = 2
"""Version of the messages. A daemon refuses another one with a sentence that names both."""

MAX_PARTS = 12
MAX_HEADER_BYTES = 4 << 20
MAX_BLOCK_BYTES = 64 << 20
MAX_MESSAGE_BYTES = 96 << 20

MAX_OPTIMIZERS = 64
MAX_STEP = 1 << 53
"""The greatest global_step: up to it, float64 holds every whole number."""
MAX_STEPS = 65_536
"""Steps of one message."""
MAX_SCALARS = 512
MAX_TENSORS = 65_536
MAX_STATS = 64
MAX_TEXT = 4_096
MAX_NAME = 256


def fit(text: str, most: int = MAX_NAME) -> str:
    """As much of a text as the wire takes: of what a file's name may hold and UTF-8 cannot, a "?" is left."""
    return text[:most].encode(errors="replace").decode()

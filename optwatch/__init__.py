"""optwatch: see what goes wrong in a training run, and act on it.

`import optwatch` is cheap: torch is imported by `attach`, matplotlib by `plot`, textual by `optwatch tui`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optwatch.notebook import plot
    from optwatch_agent import attach

__version__ = "0.1.0"
__all__ = ["__version__", "attach", "plot"]


def __getattr__(name: str) -> Any:
    if name == "attach":
        try:
            from optwatch_agent import attach
        except ModuleNotFoundError as error:
            if error.name != "torch":
                raise
            raise ModuleNotFoundError(
                "optwatch.attach needs PyTorch, which is not installed here: pip install 'optwatch[torch]'",
                name="torch",
            ) from None
        return attach
    if name == "plot":
        from optwatch.notebook import plot

        return plot
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

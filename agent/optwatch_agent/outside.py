"""Hooks that stay out of what torch.compile makes of their caller."""

from collections.abc import Callable
from typing import Any

import torch

_tracer: Callable[[], Any] | None = getattr(torch._C._dynamo.eval_frame, "get_eval_frame_callback", None)
"""What Dynamo would compile the next frame with, None outside of compiled code; not in every torch."""


def skipped(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, which a compiled caller calls as it is; what it calls is compiled as ever.

    As `torch.compiler.disable(recursive=False)`, without a wrapper, whose call takes its time.
    """
    skip: Any = torch._dynamo.decorators.skip
    marked: Callable[..., Any] = skip(function)
    return marked


def inlined(wrapper: Callable[..., Any]) -> Callable[..., Any]:
    """A wrapper of a function of torch's: compiled with its caller and never by itself, as those are.

    What it does beside calling the function has to be `outside`, and not done where it `is_compiling`.
    """
    decorators: Any = torch._dynamo.decorators
    decorators.skip_code(wrapper.__code__)
    return wrapper


def outside(hook: Callable[..., Any]) -> Callable[..., Any]:
    """A hook that a compiled caller calls as it is, and nothing in which is compiled.

    That is `torch.compiler.disable`, whose work takes as long as a good part of the hook's own: here it is
    done only where the caller is compiled.
    """
    disable: Any = torch.compiler.disable
    disabled: Callable[..., Any] = disable(hook)
    if _tracer is None:
        return disabled
    tracer = _tracer

    def called(*args: Any) -> Any:
        return hook(*args) if tracer() is None else disabled(*args)

    return skipped(called)

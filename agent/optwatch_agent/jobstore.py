"""The job's own key-value store, through which its ranks agree without a collective."""

from typing import TYPE_CHECKING

import torch.distributed as dist

from optwatch_agent.vote import Store

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store as JobStore

_PREFIX = "optwatch"


class NoStore(Exception):
    """The job has no store that could be used; the text says why."""


def default_store() -> "JobStore | None":
    """The store that `init_process_group` rendezvoused through, None before it was called.

    Raises:
        NoStore: this backend (MPI) or this version of torch has none.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return None
    from torch.distributed import distributed_c10d as c10d

    try:
        # There is no public way to it. `pg_map` behind it has been there since torch 1.
        store = c10d._get_default_store()
    except (AttributeError, KeyError, ValueError) as error:
        raise NoStore(f"the job's store cannot be found in this version of torch: {error}") from None
    if not isinstance(store, c10d.Store):
        raise NoStore(f"the process group's backend ({dist.get_backend()}) has no store")
    return store


def connect(store: "JobStore") -> Store:
    """An own connection to a store, with its own prefix. May take seconds: not for the training thread.

    Always a clone: a store's one connection is not for two threads, and a call of ours that hangs must
    not hold up one of the job's.

    Raises:
        NoStore: this kind of store cannot be cloned.
    """
    from torch.distributed import distributed_c10d as c10d

    try:
        own = store.clone()  # type: ignore[attr-defined]  # the stubs lack it
    except (AttributeError, NotImplementedError, RuntimeError) as error:
        raise NoStore(f"{type(store).__name__} cannot be cloned: {str(error).splitlines()[0]}") from None
    return c10d.PrefixStore(_PREFIX, own)

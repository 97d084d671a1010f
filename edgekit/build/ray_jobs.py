"""Spreads independent jobs over a Ray cluster whose machines share the stage cache's folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from edgekit.base.errors import StageError

Job = TypeVar("Job")
Result = TypeVar("Result")


def spread(function: Callable[[Job], Result], jobs: Sequence[Job], address: str) -> Iterator[Result]:
    """The results of `function` for `jobs`, in their order, computed on the cluster at `address` (`auto` finds one).

    Raises `StageError` when there is no such cluster or a job fails there; finished stages are kept.
    """
    import ray

    try:
        ray.init(address=address, log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise StageError(
            f"There is no Ray cluster at {address}: {error}. Nothing was started.",
            "Start one with `ray start --head`, or leave out --ray to run here.",
        ) from error
    try:
        remote = ray.remote(function)
        futures = [remote.remote(job) for job in jobs]
        for future in futures:
            try:
                yield ray.get(future)
            except ray.exceptions.RayError as error:
                raise StageError(
                    f"A run on the Ray cluster failed: {error}",
                    "Finished stages are kept: fix it and run again.",
                ) from error
    finally:
        ray.shutdown()

"""Multi-process work: rank, world size and a final barrier, from the launcher's variables."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import Any

from embedprior.errors import BadInput


@dataclass(frozen=True)
class ProcessGroup:
    """This process among those that were launched together.

    Attributes:
        rank: 0 … world_size − 1.
        world_size: processes in all.
        accelerator: accelerate's object; None for one process.
    """

    rank: int = 0
    world_size: int = 1
    accelerator: Any = None

    @property
    def is_main(self) -> bool:
        """Whether this process does what is done once."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self.accelerator is not None:
            self.accelerator.wait_for_everyone()

    def gather(self, items: list[Any]) -> list[Any]:
        """Return the items of every process, in the order of their ranks."""
        if self.accelerator is None:
            return items
        from accelerate.utils import gather_object

        gathered: list[Any] = gather_object(items)
        return gathered


def process_group(asked: int | None = None, command: str = "embed ...") -> ProcessGroup:
    """Return the group of processes that torchrun or accelerate started.

    Args:
        asked: how many there must be; None = as many as the launcher was asked to start, where that can be seen.
        command: of embedprior, for the message.

    Raises:
        BadInput: there are fewer (or more) than asked for.
    """
    count = launcher_number("WORLD_SIZE", 1)
    launcher_number("RANK", 0)
    expected = asked or _accelerate_num_processes() or count
    if expected != count:
        raise BadInput(
            f"{expected} processes were asked for, {count} started. On a CPU accelerate launch starts only one. Next: "
            f"torchrun --nproc_per_node {expected} -m embedprior {command}"
        )
    if count == 1:
        return ProcessGroup()
    import torch
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    return ProcessGroup(accelerator.process_index, accelerator.num_processes, accelerator)


def leave_process_group() -> None:
    """Take this process out of the group that it trained or worked in, if it is in one.

    Its threads and sockets end now, not while the interpreter ends, which can abort a process whose work is done.
    """
    distributed = getattr(sys.modules.get("torch"), "distributed", None)
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def launcher_number(name: str, default: int) -> int:
    """Return a number that torchrun or accelerate sets in the environment.

    Raises:
        BadInput: it holds no whole number.
    """
    text = os.environ.get(name, str(default))
    if not text.isdigit():
        raise BadInput(f"the environment variable {name} is '{text}'. Allowed: a whole number, as torchrun sets it.")
    return int(text)


def _accelerate_num_processes() -> int | None:
    """Return the --num_processes of the ``accelerate launch`` that started us, if one did.

    With one process it leaves no trace of the number in the environment.
    """
    import psutil

    try:
        words = psutil.Process().parent().cmdline()
    except (psutil.Error, AttributeError):
        return None
    if not any("accelerate" in word for word in words[:2]):
        return None
    for word, following in zip(words, [*words[1:], ""], strict=True):
        name, _, value = word.partition("=")
        if name in ("--num_processes", "--num-processes"):
            text = value or following
            return int(text) if text.isdigit() else None
    return None

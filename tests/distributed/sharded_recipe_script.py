"""A recipe on ranks that share its model, and what was seen of every optimizer step; see `test_sharded_recipes.py`."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any


sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2] / "recipes")]

import torch  # noqa: E402
from finetune_dit import FinetuneDiT  # noqa: E402
from finetune_lora import FinetuneLora  # noqa: E402
from finetune_sd import FinetuneSD  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from autoprog_diffusion.growth.backends.fsdp2 import is_sharded, local_part, reshard  # noqa: E402
from autoprog_diffusion.training.diffusion import DiffusionTrainer  # noqa: E402
from autoprog_diffusion.training.run import run  # noqa: E402


RECIPES = {"sd": FinetuneSD, "lora": FinetuneLora, "dit": FinetuneDiT}


KINDS = ("_allgather_base_", "_reduce_scatter_base_", "allreduce_")


class Sent(TorchDispatchMode):
    """Lists the bytes of every gather, scatter and reduction while it is open."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[str, list[int]] = defaultdict(list)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if func.namespace == "c10d" and name in KINDS:
            # The whole tensor: what an all-gather gives, what a reduce-scatter takes.
            tensor = args[1] if name.startswith("_reduce_scatter") else args[0]
            self.sizes[name] += [part.nbytes for part in (tensor if isinstance(tensor, list) else [tensor])]
        return func(*args, **(kwargs or {}))

    def take(self) -> dict[str, list[int]]:
        """What was listed since the last call."""
        taken, self.sizes = dict(self.sizes), defaultdict(list)
        return taken


class Watch:
    """Notes of every optimizer step of a trainer.

    Attributes:
        steps: A row for each.
    """

    def __init__(self, trainer: DiffusionTrainer) -> None:
        self.steps: list[dict[str, Any]] = []
        self._trainer = trainer
        self._sent = Sent()
        self._optimizer: Any = trainer.optimizer.optimizer  # type: ignore[attr-defined]
        self._optimizer.register_step_post_hook(lambda *_: self._note())
        trainer.train = self._around(trainer.train)  # type: ignore[method-assign]

    def _around(self, train: Callable[..., None]) -> Callable[..., None]:
        def watched(*args: Any) -> None:
            with self._sent:
                train(*args)

        return watched

    def _note(self) -> None:
        parameters = list(self._trainer.growth.parameters())
        state = self._optimizer.state
        trained = [each for each in parameters if each.requires_grad]
        moments = [value for each in parameters for value in state.get(each, {}).values() if value.dim()]
        idle = [each for each in parameters if not each.requires_grad and (each.grad is not None or each in state)]
        self.steps.append(
            {
                "stage": self._trainer.growth.stage,
                "idle": len(idle),
                "without gradient": sum(each.grad is None for each in trained),
                "trained": size(trained),
                "gradients": size([each.grad for each in trained if each.grad is not None]),
                "moments": size(moments),
                "whole": sum(each.numel() for each in parameters),
                "held": size(parameters) // 4,
                "sent": self._sent.take(),
            }
        )


def size(tensors: list[Any]) -> int:
    """Bytes of tensors on this rank."""
    return sum(local_part(each.detach()).numel() * each.element_size() for each in tensors)


def main() -> None:
    torch.set_num_threads(1)
    folder, name, *flags = sys.argv[1:]
    seen: dict[str, Any] = {}

    class Watched(RECIPES[name]):  # type: ignore[misc,valid-type]
        def get_ready(self, args: Any, accelerator: Any) -> DiffusionTrainer:
            trainer = super().get_ready(args, accelerator)
            seen["watch"] = Watch(trainer)
            return trainer

    recipe = Watched()
    trainer = run(recipe, recipe.parse(flags))
    reshard(trainer.bare)  # drawing has left the root's parameters gathered
    first: Any = next(trainer.growth.parameters())
    result = {
        "sharded": is_sharded(trainer.bare),
        "mesh": list(first.device_mesh.shape) if is_sharded(trainer.bare) else [],
        "embedding": trainer.growth.state_dict()["embedding"] is not None,
        "steps": seen["watch"].steps,
    }
    Path(folder, f"rank{trainer.accelerator.process_index}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()

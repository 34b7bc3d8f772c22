"""Fine-tuning of `vit/finetune.py`: a pretrained model, frozen or unfrozen block after block."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from accelerate.utils import set_seed

from autoprog_diffusion import command_line
from autoprog_diffusion.growth import ConfigError, GrowthConfig, GrowthPlan, GrowthScheduler
from autoprog_diffusion.training.arguments import (
    GrowthArguments,
    OutputArguments,
    autoprog_zero,
    flat_flags,
    growth_config,
    take_flag,
)
from autoprog_diffusion.training.checkpoints import find_checkpoint
from autoprog_diffusion.training.flag_checks import check_accumulations, explicit_wins
from autoprog_diffusion.training.given_plan import plan_for

from ..ema import WeightAverage
from ..models import ModelError, check_size, size_multiple
from ..pretrained import fit_head, load_pretrained
from ..resolution import enable_dynamic_resolution, image_size
from .arguments import SharedArguments, TrainArguments, check_shared, output_arguments
from .augment_settings import AugmentSettings
from .clock import check_clock
from .loading import check_sizes, load_data
from .trainer import ViTScript, ViTTrainer


if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class PretrainedArguments:
    """Model."""

    model: str = ""
    """A folder that vit/pretrain.py, timm or transformers wrote, timm:<architecture> or transformers:<Hub name>."""
    img_size: int | None = None
    """Side of the images in the last stage, in pixels [what the model was built for]."""
    drop_path: float = 0.0
    """Rate of stochastic depth of the last block, in the last stage."""


@flat_flags
@dataclass(frozen=True)
class FinetuneArguments(SharedArguments):
    """All groups of arguments of `vit/finetune.py`.

    A classifier has no timestep, so no stage embedding. Its steps are cheap: a search may record more of them.
    """

    model: PretrainedArguments = PretrainedArguments()
    train: TrainArguments = TrainArguments(epochs=20, batch_size=64, lr=5e-4, warmup_epochs=1.0)
    augment: AugmentSettings = AugmentSettings(scale=(0.5, 1.0), mixup=0.0, cutmix=0.0, reprob=0.0)
    growth: GrowthArguments = GrowthArguments(stage_embedding=False, search_batches=8)
    output: OutputArguments = output_arguments("vit-finetuned")


class FinetuneTrainer(ViTTrainer):
    """Trains a pretrained model, and averages its weights."""

    growth: GrowthScheduler

    def prepare_growth(self) -> None:
        checkpoint = find_checkpoint(self.root, self.args.output.resume_from_checkpoint)
        plan = plan_for(self._plan, self.max_steps, checkpoint)
        self.growth.prepare(self.model, num_training_steps=self.max_steps, plan=plan)
        self._average = WeightAverage(self.bare, self.args.train.model_ema_decay)
        self._fix_resolution = enable_dynamic_resolution(self.bare)
        self.accelerator.register_for_checkpointing(self)

    def average(self) -> None:
        self._average.update(everything=self.growth.plan.freezes)

    def averaged(self) -> AbstractContextManager[None]:
        return self._average.swapped_in()

    def finish(self) -> None:
        super().finish()
        self._fix_resolution()

    def state_dict(self) -> dict[str, Any]:
        """The average; everything else is registered for checkpointing by itself."""
        return {"average": self._average.state_dict(), "updates": self._average.updates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put back the average."""
        self._average.load_state_dict(state_dict["average"], state_dict["updates"])


class Finetuning(ViTScript[FinetuneArguments]):
    """`vit/finetune.py`."""

    name = "vit-finetune"

    def arguments(self) -> type:
        return FinetuneArguments

    def parse(self, argv: Sequence[str], description: str | None = None) -> FinetuneArguments:
        defaults = FinetuneArguments()
        growth, _ = take_flag(argv, "growth")
        if growth == "autoprog_zero":
            # The scores of a search replay calls, whose logits belong to one size of image.
            preset = autoprog_zero(stage_embedding=False, stage_dropout=0.0, resolutions=None)
            defaults = replace(defaults, growth=preset)
        args = command_line.parse(FinetuneArguments, argv, default=defaults, description=description)
        args = explicit_wins(args, argv)
        check_shared(args)
        config, _ = growth_of(args, multiple=1)
        check_clock(args.train.sched, config.search, "none")
        return args

    def get_ready(self, args: FinetuneArguments, accelerator: Accelerator) -> FinetuneTrainer:
        set_seed(args.train.seed)  # the same new head on every rank
        model = load_pretrained(args.model.model)
        size = args.model.img_size or image_size(model)
        if size is None:
            raise ModelError(f"--img_size is missing: {type(model).__name__} does not say for which it was built.")
        check_size(model, size)
        multiple = size_multiple(model)
        config, plan = growth_of(args, multiple=multiple)
        sides = [round(side * size) if isinstance(side, float) else side for side in config.resolutions or ()]
        check_sizes(size, sides, multiple)
        data = load_data(args, size=size, accelerator=accelerator)
        fit_head(model, data.classes)
        growth = GrowthScheduler(model, config, accelerator)
        drop_path = args.model.drop_path
        return FinetuneTrainer(
            model,
            growth,
            data,
            args,
            accelerator,
            image_size=size,
            drop_path=drop_path,
            plan=plan,
        )


def growth_of(args: FinetuneArguments, *, multiple: int) -> tuple[GrowthConfig, GrowthPlan | None]:
    """Growth settings of the flags, and the plan of a file if they name one.

    Raises:
        ConfigError: A value is not allowed, a search is asked to choose resolutions, or blocks to warm up again.
        PlanError: The plan file cannot be used.
    """
    config, plan = growth_config(args.growth, multiple=multiple, ema_decay=None, seed=args.train.seed)
    check_accumulations(config.accumulations, args.train.max_train_steps)
    if config.rewarm_steps:
        raise ConfigError(
            f"--rewarm_steps {config.rewarm_steps} needs an optimizer that holds every block in a group of its own; "
            "this one's groups are those of timm, with and without weight decay: leave it at 0."
        )
    if config.search != "none" and config.resolutions:
        raise ConfigError(
            f"search={config.search!r} cannot choose among resolutions={config.resolutions} of a vision transformer: "
            "its scores replay calls, whose logits belong to one size. Leave one of them out."
        )
    return config, plan

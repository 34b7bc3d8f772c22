"""`Recipe`: what a recipe says about itself; the run is the same for all of them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from accelerate.utils import set_seed
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

from autoprog_diffusion.command_line import parse
from autoprog_diffusion.data.bucket_batches import BucketBatches
from autoprog_diffusion.data.bucket_plan import BucketPlan, one_size
from autoprog_diffusion.data.bucket_settings import tell_left
from autoprog_diffusion.data.captioned import load_captioned_images
from autoprog_diffusion.data.damaged import usable_images
from autoprog_diffusion.data.identity import data_identity
from autoprog_diffusion.data.latents import Latents
from autoprog_diffusion.data.placement import hold_as_stored, on_device
from autoprog_diffusion.data.report import DAMAGED, DataReport
from autoprog_diffusion.data.sources import check_batch
from autoprog_diffusion.data.tags import TagSettings, with_tag_orders
from autoprog_diffusion.growth import ConfigError, GrowthScheduler
from autoprog_diffusion.growth.backward_step import check_backward_step

from .arguments import autoprog_zero, growth_config, take_flag, with_preset
from .bucketing import check_resolution, given_resolution, held_out_plan, training_plan
from .build import make_accelerator, make_latents, make_loader
from .compiled import CompiledBlocks, check_compile
from .default_embedding import default_embedding
from .diffusion import DiffusionTrainer, Task
from .flag_checks import explicit_wins
from .held_out import HeldOutRun, HeldOutTask
from .hold_out import holds_out, note_held_out, take_share, take_validation
from .optimizers import check_optimizer
from .plain_pipeline import save_plain
from .precision import asks_for_bfloat16, with_precision
from .real_images import real_rows
from .recipe_arguments import Arguments, check_arguments
from .run import Script
from .samples import Pictures, Row
from .sharded import check_sharding, sharded_growth
from .tracking import log_pictures
from .trained_dtype import store_in_bfloat16


if TYPE_CHECKING:
    import datasets
    from accelerate import Accelerator

AnyArguments = TypeVar("AnyArguments", bound=Arguments)


class Recipe(Script[AnyArguments, DiffusionTrainer]):
    """One way of fine-tuning a diffusion pipeline: the methods are called in the order in which they stand here.

    Attributes:
        defaults: Values of the flags; any flag on the command line wins.
        model_defaults: Values of the flags where the command line names no model, and the default one trains.
        default_model: Folder of the default model.
        pipeline: The pipeline, once it is loaded.
        data_report: What the data holds and what of it is left out, once it is read.
        shares: Whether a share of the data may be held out.
        squares_only: Why images must be squares, in words that follow a colon; None where they need not be.
        plan: Sizes of the training images, once they are known; None for squares.
        processes: Of the run.
    """

    defaults: ClassVar[Any] = Arguments()
    model_defaults: ClassVar[Any] = Arguments()
    default_model: Path
    pipeline: Any
    data_report: DataReport | None = None
    shares = True
    squares_only: ClassVar[str | None] = None
    plan: BucketPlan | None = None
    processes = 1

    @abstractmethod
    def load(self, args: AnyArguments) -> Any:
        """The pipeline, in float32; what never trains does not require gradient."""

    @abstractmethod
    def denoiser(self, pipeline: Any) -> nn.Module:
        """The model of the pipeline that is fine-tuned."""

    def resolution(self, pipeline: Any) -> int:
        """Side of the images that the pipeline was made for, in pixels."""
        return self.denoiser(pipeline).config.sample_size * pipeline.vae_scale_factor  # type: ignore[union-attr]

    def multiple(self, pipeline: Any) -> int:
        """The side of an image must be a multiple of this: the VAE's factor times the denoiser's patch."""
        return pipeline.vae_scale_factor

    def drawn_multiple(self, pipeline: Any) -> int:
        """The side of a picture that the pipeline draws must be a multiple of this; a stage's images need not be."""
        return self.multiple(pipeline)

    def data(self, args: AnyArguments, pipeline: Any, resolution: int, accelerator: Accelerator) -> datasets.Dataset:
        """The training set; by default columns `image` and `text`."""
        del pipeline, accelerator
        data = args.data
        return load_captioned_images(
            train_data_dir=data.train_data_dir,
            dataset_name=data.dataset_name,
            dataset_config_name=data.dataset_config_name,
            image_column=data.image_column,
            caption_column=data.caption_column,
            max_train_samples=data.max_train_samples,
            resolution=resolution,
            cache_dir=args.model.cache_dir,
            seed=args.train.seed,
            report=self.data_report,
        )

    def loader(self, data: datasets.Dataset, args: AnyArguments, resolution: int) -> DataLoader:
        """Batches of row numbers, and of images where latents are not cached."""
        return make_loader(data, args, resolution, plan=self.plan, processes=self.processes)

    @abstractmethod
    def task(self, pipeline: Any, latents: Latents, args: AnyArguments) -> Task:
        """Batches to losses."""

    def validation(self, args: AnyArguments, pipeline: Any, resolution: int) -> datasets.Dataset | None:
        """Images of `--validation_data_dir` as `data` has them; None without the flag: a share is held out then."""
        del pipeline
        if args.evaluation.validation_data_dir is None:
            return None
        return load_captioned_images(
            train_data_dir=args.evaluation.validation_data_dir,
            image_column=args.data.image_column,
            caption_column=args.data.caption_column,
            resolution=resolution,
            cache_dir=args.model.cache_dir,
        )

    @abstractmethod
    def titles(self, args: AnyArguments, data: datasets.Dataset) -> tuple[str, ...]:
        """Titles of the pictures that are drawn before, during and after training: prompts or class names."""

    @abstractmethod
    def draw(self, pipeline: Any, args: AnyArguments, titles: Sequence[str], size: int) -> list[Image.Image]:
        """One picture per title with the pipeline as it is, `size` pixels wide, the same seeds each time."""

    def references(self, args: AnyArguments, titles: Sequence[str], size: int) -> list[Row]:
        """Rows of real pictures of the titles, beside the drawn ones; with none, `real_rows` takes the data's."""
        del args, titles, size
        return []

    def save_pipeline(self, pipeline: Any, output: Path) -> None:
        """Write the trained pipeline so that Diffusers alone loads it."""
        save_plain(pipeline, self.denoiser(pipeline), output)

    def model_name(self, args: AnyArguments) -> str:
        """Folder or Hub name of the pipeline to train."""
        return args.model.pretrained_model_name_or_path or str(self.default_model)

    def arguments(self) -> type:
        return type(self.defaults)

    def parse(self, argv: Sequence[str], description: str | None = None) -> AnyArguments:
        model, _ = take_flag(argv, "pretrained_model_name_or_path")
        growth, _ = take_flag(argv, "growth")
        defaults = self.model_defaults if model is None else self.defaults
        if growth == "autoprog_zero":
            defaults = replace(defaults, growth=autoprog_zero())
        args = parse(type(defaults), argv, default=defaults, description=description)
        return with_precision(explicit_wins(args, argv))

    def make_accelerator(self, args: AnyArguments) -> Accelerator:
        check_arguments(args)
        train = args.train
        if train.allow_tf32:
            torch.backends.cuda.matmul.allow_tf32 = True
        accelerator = make_accelerator(
            args.output,
            accumulation=train.gradient_accumulation_steps,
            mixed_precision=train.mixed_precision,
            seed=train.seed,
        )
        check_sharding(accelerator, args)
        if train.compile:
            check_compile(args, accelerator)
        reason = asks_for_bfloat16(args)
        if reason is not None and "mixed_precision" not in args.given:
            accelerator.print(f"mixed precision bf16, as {reason} needs.")
        return accelerator

    def get_ready(self, args: AnyArguments, accelerator: Accelerator) -> DiffusionTrainer:
        train = args.train
        precision = accelerator.mixed_precision
        check_optimizer(train, accelerator.device, precision)
        self.pipeline = pipeline = self.load(args)
        denoiser = self.denoiser(pipeline)
        hold_as_stored(pipeline.components.values())
        if train.step_in_backward:
            check_backward_step(denoiser, accelerator)
        multiple = self.multiple(pipeline)
        if args.data.buckets and self.squares_only is not None:
            raise ConfigError(f"--buckets is not possible: {self.squares_only}. Remove the flag.")
        resolution = given_resolution(args.data) or self.resolution(pipeline)
        check_resolution(resolution, self.drawn_multiple(pipeline))
        ema_decay = train.ema_decay if train.use_ema else None
        growth = with_preset(args.growth, args.given, denoiser)
        config, plan = growth_config(growth, multiple=multiple, ema_decay=ema_decay, seed=train.seed)
        config = default_embedding(sharded_growth(config, args.given, accelerator), args.given, denoiser)
        self.data_report = DataReport()
        data = self.data(args, pipeline, resolution, accelerator)
        data, damaged = usable_images(data, args.data.corrupt, accelerator)
        self.data_report.leave_out_rows(DAMAGED, damaged)
        data, held_out = self._hold_out(data, args, pipeline, resolution, accelerator=accelerator)
        data = with_tag_orders(data, TagSettings(args.data.shuffle_tags, args.data.keep_tags, train.seed))
        loader = self._placed_loader(data, args, pipeline, resolution, accelerator=accelerator)
        if train.gradient_checkpointing and config.checkpointing is None:
            config = replace(config, checkpointing="all")
        if train.trained_dtype == "bfloat16":
            store_in_bfloat16(denoiser)
        watched = self._held_out_run(held_out, args, pipeline, resolution, accelerator=accelerator)
        set_seed(train.seed, device_specific=True)
        latents = make_latents(pipeline, data, args, accelerator, resolution=resolution, plan=self.plan)
        trainer = DiffusionTrainer(
            denoiser,
            GrowthScheduler(denoiser, config, accelerator),
            plan=plan,
            task=self.task(pipeline, latents, args),
            loader=loader,
            args=args,
            accelerator=accelerator,
        )
        if train.compile:
            trainer.compiled = CompiledBlocks(denoiser, trainer.growth.layout, varied=self.plan is not None)
        if watched is not None:
            trainer.watch_held_out(watched)
        trainer.identity = data_identity(data)
        trainer.data_report = self.data_report
        if accelerator.is_main_process or trainer.together:
            trainer.pictures = self._pictures(data, args, accelerator, resolution)
        return trainer

    def _pictures(
        self, data: datasets.Dataset, args: AnyArguments, accelerator: Accelerator, resolution: int
    ) -> Pictures:
        """Pictures of the run's titles."""
        titles = self.titles(args, data)
        return Pictures(
            Path(args.output.output_dir),
            titles,
            draw=lambda: self._draw_on(accelerator.device, args, titles, resolution),
            references=lambda: self.references(args, titles, resolution) or real_rows(data, titles, resolution),
            writes=accelerator.is_main_process,
            show=lambda images, step: log_pictures(accelerator, "samples", images, step),
        )

    def _placed_loader(
        self, data: datasets.Dataset, args: AnyArguments, pipeline: Any, resolution: int, *, accelerator: Accelerator
    ) -> DataLoader:
        """Batches of the training images, whose sizes are known from now on; the report of the data is shown."""
        assert self.data_report is not None
        self.processes = accelerator.num_processes
        self.plan = training_plan(
            data,
            args,
            accelerator,
            resolution=resolution,
            multiple=self.drawn_multiple(pipeline),
            report=self.data_report,
        )
        loader = self.loader(data, args, resolution)
        batches = loader.batch_sampler
        if isinstance(batches, BucketBatches):
            self.data_report.readings[-1].notes += tell_left(batches, self.processes)
        self.data_report.log()
        if self.plan is None:
            rows: Any = loader.dataset
            check_batch(len(rows), args.train.train_batch_size * self.processes)
        return loader

    def _hold_out(
        self, data: datasets.Dataset, args: AnyArguments, pipeline: Any, resolution: int, *, accelerator: Accelerator
    ) -> tuple[datasets.Dataset, datasets.Dataset | None]:
        """What is trained on, and what is held out, if anything is."""
        if not holds_out(args, accelerator):
            return data, None
        given = take_validation(self.validation(args, pipeline, resolution), data, args, accelerator)
        if self.data_report is None:
            return data, given
        if given is not None:
            note_held_out(given, args, self.data_report)
            return data, given
        if not self.shares:
            return data, None
        return take_share(data, args, self.data_report, accelerator)

    def _held_out_run(
        self,
        data: datasets.Dataset | None,
        args: AnyArguments,
        pipeline: Any,
        resolution: int,
        *,
        accelerator: Accelerator,
    ) -> HeldOutRun | None:
        """Evaluations on the held-out data; None without any."""
        if data is None:
            if args.evaluation.stop_patience is not None:
                accelerator.print("--stop_patience has no effect: there is no held-out loss.")
            return None
        multiple = self.drawn_multiple(pipeline)
        plan = held_out_plan(data, args, accelerator, resolution=resolution, multiple=multiple)
        latents = make_latents(pipeline, data, args, accelerator, resolution=resolution, held_out=True, plan=plan)
        task: HeldOutTask = self.task(pipeline, latents, args)
        return HeldOutRun(task, plan or one_size(len(data), resolution), args)

    def _draw_on(
        self, device: torch.device, args: AnyArguments, titles: Sequence[str], size: int
    ) -> list[Image.Image]:
        """Pictures as `draw` makes them, with all parts of the pipeline on the device, in float32, while they draw."""
        parts = self.pipeline.components.items()
        # The safety checker looks at nothing here.
        modules = [part for name, part in parts if isinstance(part, nn.Module) and name != "safety_checker"]
        still = [module for module in modules if module is not self.denoiser(self.pipeline)]
        with on_device(still, device, dtype=torch.float32):
            return self.draw(self.pipeline, args, titles, size)

    def before(self, trainer: DiffusionTrainer) -> None:
        assert trainer.pictures is not None
        trainer.pictures.save_before()

    def save(self, trainer: DiffusionTrainer, output: Path) -> None:
        assert trainer.pictures is not None
        pipeline = trainer.plain_pipeline(self.pipeline)
        if trainer.accelerator.is_main_process:
            self.save_pipeline(pipeline, output)
            if trainer.held_out is not None:
                trainer.held_out.clean_up()
        trainer.pictures.save_before_after(trainer.step)

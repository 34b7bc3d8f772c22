"""Cases, a model and a subject each, and methods, which are recipes with flags."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from subject import DRIFT_PROMPTS, Picture, blue_mouse, hub_pictures


SIZE = 64
KLEIN = "black-forest-labs/FLUX.2-klein-base-4B"
KLEIN_TARGETS = (
    "to_out.0", "to_add_out", "to_qkv_mlp_proj", "add_k_proj", "add_q_proj", "add_v_proj", "to_k", "to_q", "to_v",
    "linear_in", "linear_out",
)  # fmt: skip
CAT = "peft-internal-testing/cat-image-dataset"
CAT_PROMPTS = (
    "sks cat sitting on a chair in front of a box of chocolates",
    "sks cat playing on the Steam Deck",
    "sks cat wearing a necklace while sitting in a box on a sofa",
    "a box with four donuts in front of sks cat",
    "sks cat wearing a pink veil with flowers on it and a dagger made out of yellow cardboard",
    "sks cat between two pillows, with one pillow showing a polar bear and the other a fox",
    "sks cat with an espresso reading the newspaper",
    "a close up of a hand petting sks cat on the head",
    "sks cat opens a white door",
    'sks cat with a VIP "all access" pass',
    'sks cat in front of a monitor showing the video game "RimWorld"',
    "sks cat reads a newspaper about cannabis",
    'sks cat reading the newspaper with the title "DIE BOX"',
    "sks cat being fed sushi",
    "sks cat in front of a box of tomatoes",
    "a gingerbread house in front of sks cat",
    "sks cat is wearing a Wednesday Addams costume",
    "sks cat looks skeptical as he reads a magazine depicting a black cat",
    "sks cat wearing a striped scarf",
    "sleepy sks cat lying in bed covered by a blue blanket",
)
CAT_DRIFT_PROMPTS = (
    "a photo of cat",
    "a color drawing of cat",
    "cat sitting in a bathtub",
    "cat looks into a mirror",
    "a photo of cat next to a tree",
    "the Mona Lisa but she looks angry",
    "a dog holding a sign that says hello world",
    "a photo of the Eiffel tower at night",
    "an astronaut riding a horse",
    "3d design concept of a chair that looks like an avocado",
)


@dataclass(frozen=True)
class Case:
    """A model and a subject.

    Attributes:
        title: For people.
        recipe: Module of the recipe that trains the whole denoiser, and its class; `finetune_lora.py` does the rest.
        model: Folder or Hub name of the pipeline; None for the one that the recipes bundle.
        pictures: (data set) -> twenty pictures of the subject.
        images: Folder or Hub name of their data set; None for those of a package.
        drift_prompts: That have nothing to do with the subject.
        features: Folder or Hub name of a DINOv2; None for EfficientNet-Lite0 of a package.
        size: Side of the pictures.
        full_steps: Optimizer steps where the denoiser's own weights train.
        lora_steps: Where adapters do.
        inference_steps: Denoising steps of a drawn picture.
        flags: Of every run.
        full_flags: Of runs that train the denoiser's own weights, besides.
        lora_flags: Of runs that train adapters, besides.
        full_rates: Learning rates, one of which is chosen on seed 0.
        lora_rates: The same for adapters.
        max_sequence_length: Tokens of text; None for the pipeline's own number.
    """

    title: str
    recipe: tuple[str, str]
    model: str | None
    pictures: Callable[[str | None], Sequence[Picture]]
    images: str | None
    drift_prompts: tuple[str, ...]
    features: str | None
    size: int
    full_steps: int
    lora_steps: int
    inference_steps: int = 20
    flags: tuple[str, ...] = ()
    full_flags: tuple[str, ...] = ()
    lora_flags: tuple[str, ...] = ()
    full_rates: tuple[float, ...] = ()
    lora_rates: tuple[float, ...] = ()
    max_sequence_length: int | None = None


@dataclass(frozen=True)
class Method:
    """One way to teach the subject.

    Attributes:
        words: For tables.
        flags: Of the recipe.
        lora: Whether adapters train.
        stops: Whether the run ends once the loss of the two pictures that validate no longer falls.
        rate_of: The method whose rate it takes; None for one of its own.
    """

    words: str
    flags: tuple[str, ...] = ()
    lora: bool = False
    stops: bool = False
    rate_of: str | None = None

    def rates(self, case: Case) -> tuple[float, ...]:
        """That are tried on seed 0."""
        if self.rate_of is not None:
            return ()
        return case.lora_rates if self.lora else case.full_rates

    def steps(self, case: Case) -> int:
        """Optimizer steps, at most."""
        return case.lora_steps if self.lora else case.full_steps

    def all_flags(self, case: Case) -> tuple[str, ...]:
        """Those of the case and its own, the latter last."""
        return (*case.flags, *(case.lora_flags if self.lora else case.full_flags), *self.flags)


OFF = ("--growth", "off")
AS_PEFT = ("--average", "off", "--lr_scheduler", "constant")
METHODS = {
    "full_last": Method("full, last weights, as PEFT trains", (*OFF, *AS_PEFT)),
    "full": Method("full, average", OFF),
    "full_stopped": Method("full, average, stopped early", OFF, stops=True, rate_of="full"),
    "freeze": Method("late freezing, average (default)", rate_of="full"),
    "freeze_stopped": Method("late freezing, average, stopped early", stops=True, rate_of="full"),
    "window": Method("two windows, average", ("--direction", "window", "--num_stages", "2")),
    "lora_last": Method("LoRA, last weights, as PEFT trains", AS_PEFT, lora=True),
    "lora": Method("LoRA, average (default)", lora=True),
    "lora_grown": Method("LoRA, adapters freeze late, average", ("--num_stages", "4"), lora=True, rate_of="lora"),
}
MAIN = ("full_last", "full", "full_stopped", "freeze", "window", "lora", "lora_grown")


def bundled_pictures(name: str | None) -> Sequence[Picture]:
    del name
    return blue_mouse(SIZE)


def cat_pictures(name: str | None) -> Sequence[Picture]:
    return hub_pictures(name or CAT, CAT_PROMPTS)


def own(**values: Any) -> tuple[str, ...]:
    """Flags from names and values."""
    return tuple(word for name, value in values.items() for word in (f"--{name}", str(value)))


CASES = {
    "bundled": Case(
        title="tiny SD, a blue mouse",
        recipe=("finetune_sd", "FinetuneSD"),
        model=None,
        pictures=bundled_pictures,
        images=None,
        drift_prompts=DRIFT_PROMPTS,
        features=None,
        size=SIZE,
        full_steps=200,
        lora_steps=200,
        # The budget is never short: what a step holds is counted, and nothing is computed again.
        flags=own(train_batch_size=2, adam_weight_decay=1e-4, checkpointing="auto", memory_gb=1000),
        full_rates=(1e-4, 3e-4),
        lora_rates=(1e-3, 3e-3),
        inference_steps=10,
    ),
    "klein": Case(
        title="FLUX.2 Klein 4B, a cat pillow",
        recipe=("finetune_flow", "FinetuneFlow"),
        model=KLEIN,
        pictures=cat_pictures,
        images=CAT,
        drift_prompts=CAT_DRIFT_PROMPTS,
        features="facebook/dinov2-base",
        size=512,
        full_steps=300,
        lora_steps=750,
        flags=own(
            train_batch_size=2,
            mixed_precision="bf16",
            checkpointing="all",
            max_sequence_length=512,
            text_encoder_dtype="stored",
            weighting_scheme="none",
        ),
        # 4 billion parameters: weights of two bytes, as PEFT's, and moments of one.
        full_flags=own(adam_weight_decay=1e-2, trained_dtype="bfloat16", optimizer="adamw8bit"),
        lora_flags=(
            *own(adam_weight_decay=1e-4, rank=32, frozen_dtype="bfloat16"),
            *("--target_modules", *KLEIN_TARGETS),
        ),
        full_rates=(5e-5,),
        lora_rates=(1e-4,),
        max_sequence_length=512,
    ),
}

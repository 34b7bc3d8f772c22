"""PEFT's measures: how much drawn pictures look like the subject, and how far other pictures have drifted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from cases import Case, Method
from common import ASSETS
from diffusers import DiffusionPipeline
from picture_features import features, pixels, rounded
from PIL import Image
from subject import Picture, Split
from torch import Tensor

from autoprog_diffusion.tasks.flow_matching import is_flow
from autoprog_diffusion.tasks.flow_pictures import draw_flow
from autoprog_diffusion.training.samples import draw_prompts


GUIDANCE = 3.5
TEST_REPEATS = 3
VALIDATION_REPEATS = 3  # PEFT draws once; here the two pictures choose the learning rate
TEST_SEED = 100_000
DRIFT_SEED = 100_000_000
Network = Callable[[Sequence[Image.Image]], Tensor]


def device() -> torch.device:
    """Where pictures are drawn and looked at."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@lru_cache
def network(name: str | None) -> Network:
    """(pictures) -> (N, D) features of length 1, of a DINOv2 by its folder or Hub name, or of EfficientNet-Lite0."""
    if name is None:
        return lambda images: F.normalize(features(rounded(pixels(images))), dim=1)
    from transformers import AutoImageProcessor, AutoModel

    processor: Any = AutoImageProcessor.from_pretrained(name)
    model: Any = AutoModel.from_pretrained(name).to(device()).eval()

    @torch.inference_mode()
    def see(images: Sequence[Image.Image]) -> Tensor:
        found = []
        for image in images:
            inputs = processor(images=[image], return_tensors="pt").to(model.device)
            found.append(model(**inputs).last_hidden_state[:, 0].float().cpu())
        return F.normalize(torch.cat(found), dim=1)

    return see


def load(case: Case, method: Method | None, folder: Path | None) -> Any:
    """The pipeline as a run left it in a folder, or as it was before; in bfloat16 on a GPU."""
    whole = method is not None and not method.lora
    source = folder if whole else case.model or ASSETS / "tiny_sd"
    pipeline = DiffusionPipeline.from_pretrained(str(source))
    if method is not None and method.lora:
        pipeline.load_lora_weights(folder)
    return pipeline.to(device(), torch.bfloat16) if device().type == "cuda" else pipeline


def draw(pipeline: Any, case: Case, prompts: Sequence[str], seed: int) -> list[Image.Image]:
    """A picture of every prompt, each with a seed of its own."""
    options = {"size": case.size, "steps": case.inference_steps, "guidance": GUIDANCE}
    if not is_flow(pipeline):
        return draw_prompts(pipeline, prompts, seed=seed, **options)
    return [
        image
        for number, prompt in enumerate(prompts)
        for image in draw_flow(
            pipeline, [prompt], seed=seed + number, max_sequence_length=case.max_sequence_length, **options
        )
    ]


def similarity(see: Network, drawn: Sequence[Image.Image], real: Sequence[Image.Image]) -> float:
    """Mean cosine of the features of pictures, pair by pair."""
    return float((see(drawn) * see(real)).sum(1).mean())


def drift(see: Network, drawn: Sequence[Image.Image], before: Sequence[Image.Image]) -> float:
    """Half of 1 less the mean cosine: 0 where nothing has changed, at most 1."""
    return (1 - similarity(see, drawn, before)) / 2


def repeated(pictures: Sequence[Picture], times: int) -> tuple[list[str], list[Image.Image]]:
    """Prompts and pictures, so many times."""
    return [one.prompt for one in pictures] * times, [one.image for one in pictures] * times


def before(case: Case, folder: Path) -> list[Image.Image]:
    """What the model drew for the drift's prompts before it was trained; the folder keeps it for further rows."""
    path = folder / "before.png"
    if not path.is_file():
        keep(path, draw(load(case, None, None), case, case.drift_prompts, DRIFT_SEED))
    strip = Image.open(path)
    return [strip.crop((left, 0, left + case.size, case.size)) for left in range(0, strip.width, case.size)]


def keep(path: Path, pictures: Sequence[Image.Image]) -> None:
    """Save pictures side by side."""
    path.parent.mkdir(parents=True, exist_ok=True)
    size = pictures[0].width
    strip = Image.new("RGB", (size * len(pictures), size))
    for number, picture in enumerate(pictures):
        strip.paste(picture, (size * number, 0))
    strip.save(path)


def judge(pipeline: Any, case: Case, data: Split, folder: Path) -> tuple[dict[str, float], list[Image.Image]]:
    """Measures of a pipeline, and some of the pictures that they are of: four of the test, four of the drift.

    Args:
        pipeline: In training or not.
        case: Says what is drawn.
        data: The subject.
        folder: Keeps what the model drew before.
    """
    see = network(case.features)
    prompts, real = repeated(data.test, TEST_REPEATS)
    drawn = draw(pipeline, case, prompts, TEST_SEED)
    prompts, validated = repeated(data.validation, VALIDATION_REPEATS)
    shown = draw(pipeline, case, prompts, 2 * TEST_SEED)
    others = draw(pipeline, case, case.drift_prompts, DRIFT_SEED)
    values = {
        "similarity": similarity(see, drawn, real),
        "validation_similarity": similarity(see, shown, validated),
        "drift": drift(see, others, before(case, folder)),
    }
    return values, [*drawn[: len(data.test)], *others[:2], *others[-2:]]

"""A small Flux pipeline, distilled in minutes from the bundled SD3 transformer, for the example of a LoRA.

No Flux of a size that a CPU trains is published. This one is `FluxPipeline` and `FluxTransformer2DModel` of Diffusers:
six double blocks, which begin with the weights of SD3's six joint blocks, and two single ones, which begin as nothing.
Positions are rotary and the second text encoder is a T5 of random weights, so it has to learn; its teacher is the SD3
transformer under classifier-free guidance, as Flux.1 dev had one, and a guidance embedding tells it the scale.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel, SD3Transformer2DModel
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm
from transformers import CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

from autoprog_diffusion.tasks.tiny_pipelines import load_tiny_flow


ROOT = Path(__file__).resolve().parents[2]
ASSETS = ROOT / "recipes" / "assets"
sys.path.append(str(ASSETS / "build"))

from cached_latents import Data
from pretrain_tiny_transformers import matrix_groups
from sessions import learning_rate, load_state, save_state, set_rate
from tiny_flow import flow_data


WIDTH = 128
HEADS = 4
SINGLE_BLOCKS = 2
TOKENS = 16  # of a caption
LEAST_GUIDANCE = 1.0  # of the scales that the teacher guides with
MOST_GUIDANCE = 4.0
DROPPED = 0.1  # captions
STEPS = 320
BATCH = 16
SAVE_EVERY = 50
TELL_EVERY = 10
RATE = 2e-3
WARM_UP = 20
EMA_DECAY = 0.98


@dataclass(frozen=True)
class Text:
    """Captions as a transformer takes them, the empty one last.

    Attributes:
        tokens: (N + 1, L, D).
        pooled: (N + 1, P).
    """

    tokens: Tensor
    pooled: Tensor


@dataclass(frozen=True)
class Batch:
    """One call of a transformer.

    Attributes:
        noisy: (N, 4, H, W) latents with noise.
        sigmas: (N,) in [0, 1], 1 being noise.
        rows: (N,) of the captions.
        scale: (N,) of guidance.
    """

    noisy: Tensor
    sigmas: Tensor
    rows: Tensor
    scale: Tensor


def word_tokenizer(captions: Sequence[str]) -> T5Tokenizer:
    """A token for every word of the captions, and one for every character."""
    words = sorted({word for caption in captions for word in caption.split()})
    letters = sorted({letter for word in words for letter in word})
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
    pieces += [(f"\u2581{word}", -1.0) for word in words]
    pieces += [(letter, -9.0) for letter in letters]
    return T5Tokenizer(vocab=pieces, extra_ids=0)


def build(teacher: Any, captions: Sequence[str]) -> FluxPipeline:
    """The pipeline before it is trained: what fits of the teacher's weights, else those of a new model."""
    torch.manual_seed(0)
    tokenizer = word_tokenizer(captions)
    text = T5Config(
        vocab_size=len(tokenizer),
        d_model=WIDTH,
        d_kv=WIDTH // HEADS,
        d_ff=WIDTH,
        num_layers=1,
        num_heads=HEADS,
    )
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=len(teacher.transformer.transformer_blocks),
        num_single_layers=SINGLE_BLOCKS,
        attention_head_dim=WIDTH // HEADS,
        num_attention_heads=HEADS,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(8, 12, 12),
    )
    take_weights(transformer, teacher.transformer)
    folder = ASSETS / "tiny_sd"
    scheduler: Any = FlowMatchEulerDiscreteScheduler(shift=1.0)
    return FluxPipeline(
        transformer=transformer,
        scheduler=scheduler,
        vae=teacher.vae,
        text_encoder=CLIPTextModel.from_pretrained(folder / "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        text_encoder_2=T5EncoderModel(text).eval(),
        tokenizer_2=tokenizer,
    )


@torch.no_grad()
def take_weights(flux: FluxTransformer2DModel, sd3: SD3Transformer2DModel) -> None:
    """Begin with SD3's weights wherever both have the same layer; every other gate begins closed."""
    for block in flux.single_transformer_blocks:
        block.norm.linear.weight.zero_()
        block.norm.linear.bias.zero_()
    last = flux.transformer_blocks[-1].norm1_context.linear  # SD3's last block leaves the text as it is
    last.weight.zero_()
    last.bias.zero_()
    flux.time_text_embed.guidance_embedder.linear_2.weight.zero_()
    flux.time_text_embed.guidance_embedder.linear_2.bias.zero_()
    own = flux.state_dict()
    known = converted(sd3)
    flux.load_state_dict({name: known[name] for name in own if fits(own[name], known.get(name))}, strict=False)


def fits(own: Tensor, found: Tensor | None) -> bool:
    """Whether there is a weight of the same shape."""
    return found is not None and own.shape == found.shape


def converted(sd3: SD3Transformer2DModel) -> dict[str, Tensor]:
    """SD3's weights under Flux's names, for patches of (channel, row, column)."""
    weights = dict(sd3.state_dict())
    weights["x_embedder.weight"] = weights["pos_embed.proj.weight"].flatten(1)
    weights["x_embedder.bias"] = weights["pos_embed.proj.bias"]
    for name in ("proj_out.weight", "proj_out.bias"):
        rows = weights[name].unflatten(0, (2, 2, 4))  # row, column, channel
        weights[name] = rows.movedim(2, 0).flatten(0, 2)
    # Both of SD3's text encoders give the same pooled text.
    first, second = weights["time_text_embed.text_embedder.linear_1.weight"].chunk(2, dim=1)
    weights["time_text_embed.text_embedder.linear_1.weight"] = first + second
    del weights[f"transformer_blocks.{len(sd3.transformer_blocks) - 1}.norm1_context.linear.weight"]
    return weights


@torch.no_grad()
def texts(pipeline: FluxPipeline, captions: Sequence[str]) -> Text:
    """Captions as the pipeline encodes them."""
    tokens, pooled, _ = pipeline.encode_prompt([*captions, ""], None, max_sequence_length=TOKENS)
    return Text(tokens, pooled)


@torch.no_grad()
def guided(teacher: SD3Transformer2DModel, batch: Batch, text: Text) -> Tensor:
    """The teacher's velocity under guidance, (N, 4, H, W)."""
    empty = torch.full_like(batch.rows, len(text.tokens) - 1)
    rows = torch.cat([batch.rows, empty])
    output = teacher(
        batch.noisy.repeat(2, 1, 1, 1),
        timestep=1000 * batch.sigmas.repeat(2),
        encoder_hidden_states=text.tokens[rows],
        pooled_projections=text.pooled[rows],
        return_dict=False,
    )[0].float()
    with_text, without = output.chunk(2)
    return without + batch.scale.view(-1, 1, 1, 1) * (with_text - without)


def predicted(pipeline: Any, batch: Batch, text: Text) -> Tensor:
    """The student's velocity, (N, 4, H, W), by a call as the pipeline makes it."""
    count, channels, height, width = batch.noisy.shape
    place = {"device": batch.noisy.device, "dtype": batch.noisy.dtype}
    output = pipeline.transformer(
        hidden_states=pipeline._pack_latents(batch.noisy, count, channels, height, width),
        timestep=batch.sigmas,
        guidance=batch.scale,
        encoder_hidden_states=text.tokens[batch.rows],
        pooled_projections=text.pooled[batch.rows],
        txt_ids=torch.zeros(TOKENS, 3),
        img_ids=pipeline._prepare_latent_image_ids(count, height // 2, width // 2, **place),
        return_dict=False,
    )[0].float()
    factor = pipeline.vae_scale_factor
    return pipeline._unpack_latents(output, height * factor, width * factor, factor)


def draw_batch(data: Data, step: int) -> Batch:
    """Noisy Twemoji, the same ones in every run; one caption in ten is dropped."""
    torch.manual_seed(step)
    index = torch.randint(len(data), (BATCH,))
    sigmas = torch.rand(BATCH)
    latents = data.latents(index)
    mix = sigmas.view(-1, 1, 1, 1)
    return Batch(
        noisy=(1 - mix) * latents + mix * torch.randn_like(latents),
        sigmas=sigmas,
        rows=torch.where(torch.rand(BATCH) < DROPPED, len(data), index),
        scale=LEAST_GUIDANCE + (MOST_GUIDANCE - LEAST_GUIDANCE) * torch.rand(BATCH),
    )


class States:
    """Pictures' states after every joint block of a transformer's latest call."""

    def __init__(self, blocks: Iterable[nn.Module]) -> None:
        self._found: list[Tensor] = []
        for block in blocks:
            block.register_forward_hook(self._keep)

    def _keep(self, block: nn.Module, inputs: Any, output: tuple[Tensor, Tensor]) -> None:
        self._found.append(output[1].float())

    def take(self) -> list[Tensor]:
        """Those of the latest call, which are forgotten here."""
        found = list(self._found)
        self._found.clear()
        return found


def distance(own: States, known: States) -> Tensor:
    """How far states are from the teacher's with the text, as a share of their variance; the mean over blocks."""
    shares = []
    for state, target in zip(own.take(), known.take()):
        target = target[: len(state)]
        shares.append(F.mse_loss(state, target) / target.var())
    return torch.stack(shares).mean()


def losses(pipeline: Any, teacher: Any, data: Data, steps: Iterable[int]) -> Iterator[Tensor]:
    """The distance to the teacher, in what is predicted and on the way there, step by step."""
    states = States(pipeline.transformer.transformer_blocks)
    targets = States(teacher.transformer.transformer_blocks)
    own = texts(pipeline, data.names)
    _, tokens, pooled = data.conditions
    known = Text(tokens, pooled)
    for step in tqdm(steps, desc="distilling"):
        batch = draw_batch(data, step)
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            target = guided(teacher.transformer, batch, known)
            loss = F.mse_loss(predicted(pipeline, batch, own), target)
            on_the_way = distance(states, targets)
        if step % TELL_EVERY == 0:
            tqdm.write(f"step {step}: {loss.item():.3f} from the teacher, {on_the_way.item():.3f} on the way")
        yield loss + on_the_way


def distil(folder: Path, steps: int = STEPS) -> None:
    """Train the pipeline, and save it with the average of its weights; a run that was cut goes on."""
    teacher = load_tiny_flow(ASSETS)
    teacher.transformer.eval()
    data = flow_data()
    pipeline = build(teacher, data.names)
    model = pipeline.transformer
    optimizer = matrix_groups(model)
    average = EMAModel(model.parameters(), decay=EMA_DECAY, foreach=True)
    parts = {"model": model, "optimizer": optimizer, "average": average}
    path = folder.with_name(f"{folder.name}.pt")
    state = load_state(path)
    for name in parts if state else ():
        parts[name].load_state_dict(state[name])
    first = state.get("step", 0)
    for step, loss in enumerate(losses(pipeline, teacher, data, range(first, steps)), start=first):
        set_rate(optimizer, learning_rate(RATE, step, step / steps, warmup=WARM_UP))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.step(model.parameters())
        if (step + 1) % SAVE_EVERY == 0:
            save_state(path, **{name: part.state_dict() for name, part in parts.items()}, step=step + 1)
    average.copy_to(model.parameters())
    pipeline.save_pretrained(folder)
    path.unlink(missing_ok=True)

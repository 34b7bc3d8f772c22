"""`search` and `scale` of `vit/asvit.py`: scores in, a topology or a family out."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

import autoprog_diffusion
from autoprog_diffusion.files import write_text_atomically
from autoprog_diffusion.growth.errors import GrowthError

from ..training.arguments import DataArguments
from ..training.augment import normalised
from ..training.data import decode_all
from ..training.loading import load_rows
from .arguments import ScaleArguments, ScoreArguments, SearchArguments, parse, parse_space
from .evolution import EvolutionSettings, evolve
from .genotype import SEED_WIDTH, ZOO, Genotype, GenotypeError
from .pictures import draw_family, draw_search, print_best, print_family
from .reinforce import Found, ReinforceSettings, reinforce
from .scaling import Member, ScalingSettings, scale
from .score_cache import Evaluation, ScoreCache
from .scores import topology_scores
from .space import SearchSpace
from .training import run_training


SEARCH_FILE, FAMILY_FILE, CACHE_FILE = "search.json", "family.json", "evaluations.json"


def main(argv: list[str], description: str | None = None) -> None:
    """Run a command line; an error of ours ends it with one line."""
    try:
        args = parse(argv, description)
        if isinstance(args, SearchArguments):
            run_search(args)
        elif isinstance(args, ScaleArguments):
            run_scaling(args)
        else:
            run_training(args, read_genotype(args.genotype, args.member))
    except GrowthError as error:
        sys.exit(f"error: {error}")


def run_search(args: SearchArguments) -> Found:
    """Search a topology, and leave `search.json`, `search.png` and a printed table.

    Raises:
        GenotypeError: The space leaves no network at this image size.
        SearchError: All networks are degenerate.
        StateError: The folder holds another search.
    """
    space = SearchSpace(parse_space(args.space)).at(args.score.img_size, width=SEED_WIDTH)
    folder = _folder(args.output_dir)
    cache = make_cache(folder, args.score, args.data, args.resume)
    started = time.perf_counter(), time.process_time()

    def progress(steps: Iterable[int]) -> Iterable[int]:
        with tqdm(steps, desc=args.method) as bar:
            for step in bar:
                yield step
                bar.set_postfix(networks=len(cache), degenerate=sum(e.degenerate for e in cache.evaluations))

    if args.method == "reinforce":
        found = reinforce(space, cache, ReinforceSettings(args.steps, seed=args.score.seed), progress)
    else:
        settings = EvolutionSettings(args.steps, args.population, args.tournament, args.score.seed)
        found = evolve(space, cache, settings, progress)
    seen = [cache[genotype] for genotype in dict.fromkeys((*found.trace, found.genotype))]
    values: dict[str, Any] = {"genotype": found.genotype, "scores": cache[found.genotype].to_dict()}
    values |= {"space": {name: list(options) for name, options in space.choices.items()}, "space_size": space.size}
    values |= {"trace": found.trace, "rewards": found.rewards, "evaluations": [item.to_dict() for item in seen]}
    _write(folder / SEARCH_FILE, args, values, started, cache)
    draw_search(folder / "search.png", found, seen)
    print_best(found, seen, args.score.img_size)
    print(f"topology {found.genotype}: search.json and search.png are in {folder}/")
    return found


def run_scaling(args: ScaleArguments) -> list[Member]:
    """Grow a topology into a family, and leave `family.json`, `family.png` and a printed table.

    Raises:
        BudgetError: The budget is below the smallest network.
        GenotypeError: The genotype is malformed, or does not exist at this image size.
        SearchError: All candidates of a step are degenerate.
        StateError: The folder holds another scaling.
    """
    topology = read_genotype(args.genotype)
    settings = ScalingSettings(
        budget_params=args.budget_params, budget_flops=args.budget_flops, image_size=args.score.img_size,
        num_classes=args.num_classes, shrink=args.shrink, width_multiple=args.width_multiple,
        head_dim_multiple=args.head_dim_multiple, min_head_dim=args.min_head_dim,
    )  # fmt: skip
    folder = _folder(args.output_dir)
    cache = make_cache(folder, args.score, args.data, args.resume)
    started = time.perf_counter(), time.process_time()
    with tqdm(desc="networks of the family") as bar:

        def accepted(member: Member) -> None:
            bar.update(1)
            bar.set_postfix(genotype=member.genotype, params=f"{member.params / 1e6:.1f}M", evaluated=len(cache))

        family = scale(topology, cache, settings, accepted)
    values = {"genotype": family[-1].genotype, "family": [asdict(member) for member in family]}
    values["evaluations"] = [item.to_dict() for item in cache.evaluations]
    _write(folder / FAMILY_FILE, args, values, started, cache)
    draw_family(folder / "family.png", family)
    print_family(family)
    print(f"{len(family)} networks: family.json and family.png are in {folder}/")
    return family


def make_cache(folder: Path, score: ScoreArguments, data: DataArguments, resume: bool) -> ScoreCache:
    """Scores of networks by the arguments, kept in the folder."""
    images = None if score.images == "noise" else ntk_images(score, data)
    digest = "noise" if images is None else hashlib.sha256(images.numpy().tobytes()).hexdigest()
    settings = {**asdict(score), "images": digest}

    def evaluate(genotype: str) -> Evaluation:
        parsed = Genotype.parse(genotype, {})
        shared: dict[str, Any] = {"image_size": score.img_size, "repeats": score.repeats, "seed": score.seed}
        noise = _noise(score) if images is None else images
        found = topology_scores(parsed, images=noise, **shared)
        return Evaluation(genotype, found.ntk, found.length_distortion, found.degenerate)

    return ScoreCache(evaluate, folder / CACHE_FILE, settings, resume=resume)


def ntk_images(score: ScoreArguments, data: DataArguments) -> Tensor:
    """A random batch of the training data (N, 3, S, S), normalised as for training.

    The released code takes the first files of an unshuffled folder, which are all of one class.
    """
    train, _ = load_rows(data, score.img_size, score.seed)
    rows = np.random.default_rng(score.seed).permutation(len(train))[: score.ntk_batch].tolist()
    return normalised(decode_all(train.select(rows), score.img_size, data.corrupt).images.float() / 255)


def read_genotype(name: str, member: int = -1) -> Genotype:
    """The genotype that a flag names: itself, a published network, or what a search or scaling left in a folder.

    Args:
        name: Of the flag.
        member: Of a family, which network.

    Raises:
        GenotypeError: It is malformed, or the folder or file holds none.
    """
    if name in ZOO:
        return Genotype.parse(ZOO[name])
    path = Path(name)
    if "|" in name or not path.exists():
        return Genotype.parse(name)
    files = [path / FAMILY_FILE, path / SEARCH_FILE] if path.is_dir() else [path]
    file = next((file for file in files if file.exists()), None)
    if file is None:
        raise GenotypeError(f"the folder {path} holds neither {FAMILY_FILE} nor {SEARCH_FILE}: name one that does.")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        names = [row["genotype"] for row in values.get("family", [])] or [values["genotype"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise GenotypeError(
            f"{file} holds no genotype ({error!r}): name the result of a search or scaling."
        ) from error
    if not -len(names) <= member < len(names):
        raise GenotypeError(
            f"member {member} does not exist: {file} holds {len(names)} networks, 0 to {len(names) - 1}."
        )
    return Genotype.parse(names[member])


def _noise(score: ScoreArguments) -> Tensor:
    generator = torch.Generator().manual_seed(score.seed)
    return torch.randn(score.ntk_batch, 3, score.img_size, score.img_size, generator=generator)


def _folder(name: str) -> Path:
    folder = Path(name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise GrowthError(
            f"the output folder {folder} cannot be made: {error}. Choose another --output_dir."
        ) from error
    return folder


def _write(path: Path, args: Any, values: dict[str, Any], started: tuple[float, float], cache: ScoreCache) -> None:
    spent = {"seconds": time.perf_counter() - started[0], "cpu_seconds": time.process_time() - started[1]}
    about = {"arguments": asdict(args), **spent, "evaluated_now": cache.fresh, "command": sys.argv}
    about["versions"] = {"autoprog_diffusion": autoprog_diffusion.__version__, "torch": torch.__version__}
    write_text_atomically(path, json.dumps({**values, **about}, indent=1) + "\n")

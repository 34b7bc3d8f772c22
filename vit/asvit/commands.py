"""`search` and `scale` of `vit/asvit.py`: scores in, a topology or a family out."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

import autoprog_diffusion
from autoprog_diffusion.data.report import DataReport
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
from .training import run_training, with_flags_of_file


SEARCH_FILE, FAMILY_FILE, CACHE_FILE = "search.json", "family.json", "evaluations.json"


def main(argv: list[str], description: str | None = None) -> None:
    """Run a command line; an error of ours ends it with one line.

    Args:
        argv: Sub-command and flags, without the name of the script; `train` may be left out before `--config`.
        description: Of the script, for --help.
    """
    try:
        words = with_flags_of_file(argv)
        args = parse(words, description)
        if isinstance(args, SearchArguments):
            run_search(args)
        elif isinstance(args, ScaleArguments):
            run_scaling(args)
        else:
            run_training(args, read_genotype(args.genotype, args.member), words[1:])
    except GrowthError as error:
        sys.exit(f"error: {error}")


def run_search(args: SearchArguments) -> Found:
    """Search a topology, and leave `search.json`, `search.png` and a printed table.

    Raises:
        GenotypeError: The space leaves no network at this image size.
        SearchError: All networks are degenerate.
        StateError: The folder holds another search.
    """
    seed = args.score.seed
    whole = SearchSpace(parse_space(args.space))
    space = whole.at(args.score.img_size, width=SEED_WIDTH)
    job = Job(args)
    cache = job.cache

    def progress(steps: Iterable[int]) -> Iterable[int]:
        with tqdm(steps, desc=args.method) as bar:
            for step in bar:
                yield step
                degenerate = [item for item in cache.evaluations if item.degenerate]
                bar.set_postfix(networks=len(cache), degenerate=len(degenerate))

    if args.method == "reinforce":
        settings = ReinforceSettings(args.steps, seed=seed)
        found = reinforce(space, cache, settings, progress)
    else:
        settings = EvolutionSettings(
            args.steps,
            population=args.population,
            tournament=args.tournament,
            seed=seed,
        )
        found = evolve(space, cache, settings, progress)
    # Each once, in the order they were drawn; REINFORCE may end in a network that it never drew.
    genotypes = dict.fromkeys([*found.trace, found.genotype])
    seen = [cache[genotype] for genotype in genotypes]
    job.write(
        SEARCH_FILE,
        genotype=found.genotype,
        scores=cache[found.genotype].to_dict(),
        space=dict(space.choices),
        space_size=space.size,
        trace=found.trace,
        rewards=found.rewards,
        evaluations=[item.to_dict() for item in seen],
    )
    draw_search(job.folder / "search.png", found, seen)
    print_best(found, seen, args.score.img_size)
    print(f"topology {found.genotype}: search.json and search.png are in {job.folder}/")
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
    values: dict[str, Any] = {"image_size": args.score.img_size}
    for field in fields(ScalingSettings):
        # Equal names of the command line and of the settings mean the same.
        if field.name in vars(args):
            values[field.name] = getattr(args, field.name)
    settings = ScalingSettings(**values)
    job = Job(args)
    with tqdm(desc="networks of the family") as bar:

        def accepted(member: Member) -> None:
            bar.update(1)
            params = f"{member.params / 1e6:.1f}M"
            evaluated = len(job.cache)
            bar.set_postfix(genotype=member.genotype, params=params, evaluated=evaluated)

        family = scale(topology, job.cache, settings, accepted)
    job.write(
        FAMILY_FILE,
        genotype=family[-1].genotype,
        family=[asdict(member) for member in family],
        evaluations=[item.to_dict() for item in job.cache.evaluations],
    )
    draw_family(job.folder / "family.png", family)
    print_family(family)
    print(f"{len(family)} networks: family.json and family.png are in {job.folder}/")
    return family


class Job:
    """A sub-command at work: its folder, the scores that are kept there, and its clocks.

    Args:
        args: Of the sub-command.

    Raises:
        GrowthError: The folder cannot be made, or holds the scores of another run.
    """

    def __init__(self, args: SearchArguments | ScaleArguments) -> None:
        self.args = args
        self.folder = _folder(args.output_dir)
        self.cache = make_cache(
            self.folder,
            score=args.score,
            data=args.data,
            resume=args.resume,
        )
        self._started = time.perf_counter()
        self._cpu_started = time.process_time()

    def write(self, name: str, **values: Any) -> None:
        """Write `values` and a record of the run as JSON into a file of the folder.

        Args:
            name: Of the file.
            values: Results, in JSON types.
        """
        versions = {"autoprog_diffusion": autoprog_diffusion.__version__, "torch": torch.__version__}
        values |= {
            "arguments": asdict(self.args),
            "seconds": time.perf_counter() - self._started,
            "cpu_seconds": time.process_time() - self._cpu_started,
            "evaluated_now": self.cache.fresh,
            "command": sys.argv,
            "versions": versions,
        }
        text = json.dumps(values, indent=1) + "\n"
        write_text_atomically(self.folder / name, text)


def make_cache(folder: Path, score: ScoreArguments, data: DataArguments, *, resume: bool) -> ScoreCache:
    """Scores of networks by the arguments, kept in the folder.

    Args:
        folder: Of the output.
        score: Settings of the scores; kept scores that were made with others are refused.
        data: Of the images for the NTK.
        resume: Whether scores that are there are used.

    Raises:
        StateError: The folder's scores cannot be continued.
    """
    size = score.img_size
    if score.images == "noise":
        digest = "noise"
        generator = torch.Generator().manual_seed(score.seed)
        images = torch.randn(score.ntk_batch, 3, size, size, generator=generator)
    else:
        images = ntk_images(score, data)
        digest = hashlib.sha256(images.numpy().tobytes()).hexdigest()

    def evaluate(genotype: str) -> Evaluation:
        parsed = Genotype.parse(genotype, {})
        found = topology_scores(
            parsed,
            image_size=size,
            images=images,
            repeats=score.repeats,
            seed=score.seed,
        )
        return Evaluation(
            genotype,
            ntk=found.ntk,
            length=found.length_distortion,
            degenerate=found.degenerate,
        )

    settings = {**asdict(score), "images": digest}
    return ScoreCache(evaluate, folder / CACHE_FILE, settings, resume=resume)


def ntk_images(score: ScoreArguments, data: DataArguments) -> Tensor:
    """A random batch of the training data (N, 3, S, S), normalised as for training.

    The released code takes the first files of an unshuffled folder, which are all of one class.

    Args:
        score: Size of the images and of the batch, and the seed of the draw.
        data: Names the training data.
    """
    report = DataReport()
    train, _ = load_rows(
        data,
        size=score.img_size,
        seed=score.seed,
        report=report,
    )
    print(report.table())
    order = np.random.default_rng(score.seed).permutation(len(train))
    rows = train.select(order[: score.ntk_batch].tolist())
    pixels = decode_all(rows, score.img_size, data.corrupt).images  # (N, 3, S, S), 0 to 255
    return normalised(pixels.float() / 255)


def read_genotype(name: str, member: int = -1) -> Genotype:
    """The genotype that a flag names: itself, a published network, or what a search or scaling left in a folder.

    Args:
        name: Of the flag.
        member: Of a family, which network.

    Raises:
        GenotypeError: It is malformed, or the folder or file holds none.
    """
    path = Path(name)
    if name in ZOO or "|" in name or not path.exists():
        return Genotype.parse(ZOO.get(name, name))
    if path.is_dir():
        results = [path / FAMILY_FILE, path / SEARCH_FILE]
        found = [file for file in results if file.exists()]
        if not found:
            raise GenotypeError(
                f"the folder {path} holds neither {FAMILY_FILE} nor {SEARCH_FILE}: name one that does."
            )
        path = found[0]
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        names = [row["genotype"] for row in values.get("family", [])]
        if not names:
            names = [values["genotype"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise GenotypeError(
            f"{path} holds no genotype ({error!r}): name the result of a search or scaling."
        ) from error
    if not -len(names) <= member < len(names):
        raise GenotypeError(
            f"member {member} does not exist: {path} holds {len(names)} networks, 0 to {len(names) - 1}."
        )
    return Genotype.parse(names[member])


def _folder(name: str) -> Path:
    """The output folder, made where it does not exist.

    Raises:
        GrowthError: It cannot be made.
    """
    folder = Path(name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise GrowthError(
            f"the output folder {folder} cannot be made: {error}. Choose another --output_dir."
        ) from error
    return folder

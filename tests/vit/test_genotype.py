"""The genotype string and the architecture space: exact round trips, and errors that name the part and the fix."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from autoprog_diffusion.vit.asvit.genotype import EXAMPLE, PUBLISHED, ZOO, Genotype, GenotypeError
from autoprog_diffusion.vit.asvit.space import SearchSpace


def test_published_strings_come_back_unchanged() -> None:
    for name in ZOO:
        assert str(Genotype.parse(ZOO[name])) == ZOO[name]


def test_every_genotype_survives_its_string() -> None:
    rng, space = Random(0), SearchSpace()
    for _ in range(300):
        genotype = space.sample(rng)
        grown = replace(genotype, depths=tuple(rng.randint(1, 9) for _ in range(4)), width=8 * rng.randint(1, 30))
        for one in (genotype, grown):
            assert Genotype.parse(str(one)) == one
            assert str(Genotype.parse(str(one))) == str(one)


def test_depths_may_be_named_for_some_stages_only() -> None:
    genotype = Genotype.parse("8,2,3|4,1,2,5|4,1,4|4,1,6|32")
    assert (genotype.depths, genotype.width) == ((1, 5, 1, 1), 32)


def test_stages_of_the_large_network() -> None:
    genotype = Genotype.parse(ZOO["large"])
    assert genotype.widths == (180, 360, 720, 1024)  # 8C would be 1440
    assert genotype.stage_heads == (4, 8, 16, 32)
    assert genotype.grids(224) == (56, 28, 14, 7)


A_MALFORMED_STRING = [
    ("8,2,3|4,1,2|4,1,4|32", r"4 parts between bars, 5 are needed.*8,2,3\|"),
    ("", r"1 parts between bars"),
    ("8,2|4,1,2|4,1,4|4,1,6|32", r"part '8,2' should be K1,S1,E1\[,L1\]"),
    ("8,2,3|4,1,2,1,1|4,1,4|4,1,6|32", r"part '4,1,2,1,1' should be K2,S2,E2\[,L2\]"),
    ("9,2,3|4,1,2|4,1,4|4,1,6|32", r"K1 \(kernel\) is 9; it may be 4, 5, 6, 7 or 8"),
    ("8,2,3|4,3,2|4,1,4|4,1,6|32", r"S2 \(attention splits\) is 3; it may be 1, 2 or 4"),
    ("8,2,3|4,1,2|4,1,4|4,2,6|32", r"S4 \(attention splits\) is 2; it may be 1"),
    ("8,2,3|4,1,2|4,1,x|4,1,6|32", r"E3 \(MLP expansion\) is 'x', not a whole number; it may be 2, 3, 4, 5 or 6"),
    ("8,2,3|4,1,2|4,1,-4|4,1,6|32", r"E3 \(MLP expansion\) is '-4'"),
    ("8,2,3|4,1,2|4,1,4|4,1,6|24", r"H \(heads\) is 24; it may be 16, 32 or 64"),
    ("8,2,3|4,1,2|4,1,4|4,1,6|32,0", r"C \(width\) is 0; it must be a whole number of at least 1"),
    ("8,2,3,0|4,1,2|4,1,4|4,1,6|32", r"L1 \(depth\) is 0; it must be a whole number of at least 1"),
    ("8,2,3,1.5|4,1,2|4,1,4|4,1,6|32", r"L1 \(depth\) is '1.5'.*any whole number of at least 1"),
]


def test_a_malformed_string_names_the_part_and_what_is_allowed() -> None:
    for text, message in A_MALFORMED_STRING:
        with pytest.raises(GenotypeError, match=message):
            Genotype.parse(text)


def test_a_genotype_built_by_hand_is_checked_too() -> None:
    good = Genotype.parse(EXAMPLE)
    with pytest.raises(GenotypeError, match=r"depth: \[1, 1\] has 2 entries"):
        replace(good, depths=(1, 1))
    with pytest.raises(GenotypeError, match=r"H: 20 heads cannot be divided by 8"):
        replace(good, heads=20)


@pytest.mark.parametrize(
    ("text", "size", "message"),
    [
        (EXAMPLE, 200, r"image size 200 is not a multiple of 32.*use 192"),
        (EXAMPLE, 16, r"image size 16 is not a multiple of 32.*use 32"),
        ("8,8,3|4,4,2|4,1,4|4,1,6|32", 224, None),
        ("8,8,3|4,1,2|4,1,4|4,1,6|32", 96, None),
        ("8,2,3|4,4,2|4,2,4|4,1,6|32", 160, None),
        (
            "8,2,3|4,1,2|4,1,4|4,1,6|64,36",
            64,
            r"C: stage 1 has width 36, which its 8 heads do not divide.*multiple of",
        ),
    ],
)
def test_what_does_not_fit_the_image_size(text: str, size: int, message: str | None) -> None:
    genotype = Genotype.parse(text)
    if message is None:
        genotype.check(size)
        return
    with pytest.raises(GenotypeError, match=message):
        genotype.check(size)


def test_windows_that_do_not_divide_a_grid() -> None:
    genotype = replace(Genotype.parse(EXAMPLE), splits=(3, 1, 1, 1))
    with pytest.raises(GenotypeError, match=r"S1: 3 windows do not divide the 8 x 8 tokens.*S1 may be 2, 4 or 8"):
        genotype.check(32)


def test_the_published_space_has_its_size() -> None:
    assert SearchSpace().size == 4_556_250


def test_samples_and_mutants_stay_in_a_narrowed_space() -> None:
    rng, space = Random(1), SearchSpace({"K1": (8, 4), "H": (16,), "E4": (6,)})
    assert space.size == 4_556_250 // 5 * 2 // 3 // 5
    genotype = space.sample(rng)
    seen = set()
    for _ in range(200):
        mutant = space.mutate(genotype, rng)
        changed = [name for name in PUBLISHED if mutant.choices[name] != genotype.choices[name]]
        assert len(changed) == 1
        assert mutant in space
        seen.add(changed[0])
        genotype = mutant
    assert seen == set(PUBLISHED) - {"H", "E4", "S4"}  # the parts that have a choice
    assert Genotype.parse("5,2,3|4,1,2|4,1,4|4,1,6|16") not in space


def test_a_mutant_keeps_depths_and_width() -> None:
    genotype = Genotype.parse(ZOO["small"])
    mutant = SearchSpace().mutate(genotype, Random(0))
    assert (mutant.depths, mutant.width) == (genotype.depths, genotype.width)


def test_a_seed_gives_the_same_samples_however_the_space_was_written() -> None:
    spaces = [SearchSpace({"K1": values}) for values in ((4, 8, 6), (8, 6, 4))]
    first, second = ([space.sample(Random(3)) for _ in range(5)] for space in spaces)
    assert first == second


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"K1": ()}, r"K1: no value is left; give at least one of \[4, 5, 6, 7, 8\]"),
        ({"K1": (4, 9)}, r"K1: \[9\] is not in the space; it may be \[4, 5, 6, 7, 8\]"),
        ({"W": (1,)}, r"no part 'W'; its parts are K1, S1"),
    ],
)
def test_a_space_without_a_network_is_an_error(choices: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(GenotypeError, match=message):
        SearchSpace(choices)


def test_a_space_at_an_image_size_holds_valid_networks_only() -> None:
    rng, space = Random(0), SearchSpace().at(224, width=20)
    assert space.choices["H"] == (16, 32)  # 8 heads do not divide 20
    for size in (32, 96, 160, 224):
        for _ in range(50):
            replace(space.sample(rng), width=20).check(size)


def test_a_space_with_nothing_left_or_nothing_to_change_is_an_error() -> None:
    with pytest.raises(GenotypeError, match=r"no network is left at width 10: .* H is one of \[64\].*multiple of 8"):
        SearchSpace({"H": (64,)}).at(32, width=10)
    with pytest.raises(GenotypeError, match="image size 100 is not a multiple of 32"):
        SearchSpace().at(100)
    single = SearchSpace({name: values[:1] for name, values in PUBLISHED.items()})
    with pytest.raises(GenotypeError, match="the space holds one network only"):
        single.mutate(single.sample(Random(0)), Random(0))

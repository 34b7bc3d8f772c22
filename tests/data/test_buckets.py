"""Sizes of buckets and the bucket of an image, against brute force."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from autoprog_diffusion.data.bucket_batches import BucketBatches, Incomplete
from autoprog_diffusion.data.bucket_plan import BucketPlan, cut_off, merge_small, one_size, place_images
from autoprog_diffusion.data.bucket_settings import BucketSettings, plan_buckets, tell_left
from autoprog_diffusion.data.buckets import Bucket, bucket_sizes, check_step, nearest, square, step_of
from autoprog_diffusion.data.errors import DataError
from autoprog_diffusion.growth.errors import ConfigError


STEPS = {64: 8, 128: 16}
# Of the settings below a batch never fills.
SMALL = [[64, 64]] * 5 + [[40, 90]] * 3 + [[90, 40]] * 4


def shapes(count: int, seed: int = 0) -> Tensor:
    """(count, 2) random heights and widths, some of them long."""
    random = np.random.default_rng(seed)
    return torch.from_numpy(random.integers(20, 400, (count, 2)))


def brute_sizes(resolution: int, step: int, max_aspect: float) -> set[tuple[int, int]]:
    """Allowed sizes that no other allowed one covers."""
    most = int(resolution * max_aspect) + step
    lengths = range(step, most + 1, step)
    allowed = []
    for height, width in product(lengths, lengths):
        if height * width <= resolution**2 and max(height, width) <= max_aspect * min(height, width) + 1e-9:
            allowed.append((height, width))
    found = set()
    for size in allowed:
        covering = [other for other in allowed if other != size and other[0] >= size[0] and other[1] >= size[1]]
        if not covering:
            found.add(size)
    return found


def brute_nearest(height: int, width: int, buckets: tuple[Bucket, ...]) -> int:
    """The bucket that keeps the largest part of an image."""
    kept = []
    for bucket in buckets:
        scale = max(bucket.height / height, bucket.width / width)
        kept.append(bucket.area / (scale * height * scale * width))
    return kept.index(max(kept))


@pytest.mark.parametrize(("resolution", "step"), [(64, 8), (64, 16), (96, 8), (512, 64), (640, 32)])
def test_sizes_are_those_of_brute_force(resolution: int, step: int) -> None:
    for max_aspect in (1.0, 1.5, 2.0, 3.7):
        found = bucket_sizes(resolution, step, max_aspect)
        assert {(bucket.height, bucket.width) for bucket in found} == brute_sizes(resolution, step, max_aspect)
        assert len(found) == len(set(found))
        assert [bucket.aspect for bucket in found] == sorted(bucket.aspect for bucket in found)
        assert square(resolution) in found


def test_sizes_of_sdxl_are_those_it_was_trained_on() -> None:
    names = [bucket.name for bucket in bucket_sizes(1024, 64, 2.0)]
    assert names[5:] == ["1024x1024", "1088x960", "1152x896", "1216x832", "1344x768", "1408x704"]


def test_an_image_gets_the_bucket_that_keeps_most_of_it() -> None:
    buckets = bucket_sizes(512, 32, 2.5)
    lengths = shapes(500)
    found = nearest((lengths[:, 1] / lengths[:, 0]).numpy(), buckets)
    for (height, width), place in zip(lengths.tolist(), found.tolist()):
        assert place == brute_nearest(height, width, buckets)


@pytest.mark.parametrize("resolutions", [(64,), (64, 128)])
def test_places_are_those_of_a_loop(resolutions: tuple[int, ...]) -> None:
    lengths = shapes(300, seed=1)
    steps = {side: STEPS[side] for side in resolutions}
    placing = place_images(lengths, steps, 2.0)
    expected = []
    enlarged = 0
    for row, (height, width) in enumerate(lengths.tolist()):
        for number, side in enumerate(resolutions):
            own = bucket_sizes(side, STEPS[side], 2.0)
            bucket = own[brute_nearest(height, width, own)]
            fills = height >= bucket.height and width >= bucket.width
            enlarged += number == 0 and not fills
            if fills or number == 0:
                expected.append((side, row, bucket))
    plan = placing.plan
    found = [(plan.buckets[place].resolution, row, plan.buckets[place]) for row, place in zip(plan.rows, plan.places)]
    assert sorted(found, key=lambda item: (item[0], item[1])) == sorted(expected, key=lambda item: (item[0], item[1]))
    assert placing.enlarged == enlarged
    assert plan.images == 300
    assert placing.beyond == sum(max(w / h, h / w) > plan.longest.aspect for h, w in lengths.tolist())
    rows = torch.tensor([7, 3, 299])
    for row, item in zip(rows.tolist(), plan.largest_of(rows).tolist()):
        own = [place for other, place in zip(plan.rows.tolist(), plan.places.tolist()) if other == row]
        assert plan.rows[item] == row
        assert plan.buckets[int(plan.places[item])].area == max(plan.buckets[place].area for place in own)


def test_cropped_is_the_share_of_pixels_that_is_cut_off() -> None:
    lengths = torch.tensor([[64, 64], [64, 80], [30, 300]])
    plan = place_images(lengths, {64: 8}, 2.0).plan
    expected = []
    for (height, width), place in zip(lengths.tolist(), plan.places.tolist()):
        bucket = plan.buckets[place]
        scale = max(bucket.height / height, bucket.width / width)
        expected.append(1 - bucket.area / (scale * height * scale * width))
    assert math.isclose(cut_off(plan, lengths), sum(expected) / 3)


def test_small_buckets_are_merged_into_the_nearest_large_one() -> None:
    lengths = shapes(120, seed=2)
    plan = place_images(lengths, STEPS, 2.0).plan
    merged, moved = merge_small(plan, lengths, 12)
    counts = plan.counts()
    expected = []
    for row, place in zip(plan.rows.tolist(), plan.places.tolist()):
        side = plan.buckets[place].resolution
        large = [
            other for other, bucket in enumerate(plan.buckets) if bucket.resolution == side and counts[other] >= 12
        ]
        if counts[place] < 12 and large:
            own = tuple(plan.buckets[other] for other in large)
            place = large[brute_nearest(*lengths[row].tolist(), own)]
        expected.append(place)
    assert merged.places.tolist() == expected
    assert moved == sum(a != b for a, b in zip(expected, plan.places.tolist())) > 0
    assert merged.rows is plan.rows
    assert merge_small(plan, lengths, 1000)[1] == 0


def test_groups_hold_every_item_once_and_one_bucket_each() -> None:
    plan = place_images(shapes(50), STEPS, 2.0).plan
    items = torch.arange(0, len(plan), 2)
    groups = plan.groups(items, 4)
    assert sorted(torch.cat(groups).tolist()) == items.tolist()
    assert all(len(set(plan.places[group].tolist())) == 1 and len(group) <= 4 for group in groups)
    squares = one_size(10, 64)
    assert [group.tolist() for group in squares.groups(torch.arange(10), 4)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_a_stage_s_sizes_are_multiples() -> None:
    bucket = Bucket(height=832, width=1216, resolution=1024)
    assert bucket.at(1.0, 64) == (832, 1216)
    assert bucket.at(0.5, 16) == (416, 608)
    assert bucket.at(0.01, 16) == (16, 16)


def test_the_step_follows_the_resolution_and_the_model() -> None:
    assert [step_of(*pair) for pair in [(1024, 16), (512, 8), (64, 8), (768, 8), (1000, 8)]] == [64, 32, 8, 48, 40]
    for step, words in ((0, "use 8"), (20, "not a multiple of 8"), (24, "does not divide the resolution 64")):
        with pytest.raises(ConfigError, match=words):
            check_step(step, 8, [64])


def test_settings_out_of_range_are_refused() -> None:
    for settings, words in (
        (BucketSettings((64,), max_aspect=0.5), "--max_aspect 0.5 is not allowed"),
        (BucketSettings((64, 60)), "--bucket_resolutions 60 is not a multiple of 8.*use 64"),
        (BucketSettings((64, 64)), "names a resolution twice"),
        (BucketSettings((64,), step=12), "--bucket_step 12 is not a multiple of 8"),
    ):
        with pytest.raises(ConfigError, match=words):
            settings.steps(8)


def test_buckets_smaller_than_a_batch_are_refused_by_name() -> None:
    lengths = torch.tensor(SMALL)
    with pytest.raises(
        DataError, match=r"fewer images than a batch of 4 would never train their 3 images: (48x80|80x48) \(3\)"
    ):
        plan_buckets(lengths, BucketSettings((64,)), 8, 4, [])
    notes: list[str] = []
    merged = plan_buckets(lengths, BucketSettings((64,), merge=True), 8, 4, notes)
    assert sorted(filter(None, merged.counts())) == [4, 8]
    assert any("3 images of buckets smaller than a batch of 4 are cropped" in note for note in notes)
    filled = plan_buckets(lengths, BucketSettings((64,), incomplete="fill"), 8, 4, [])
    assert sorted(filter(None, filled.counts())) == [3, 4, 5]


def test_a_resolution_that_no_image_has_pixels_for_is_refused() -> None:
    with pytest.raises(DataError, match=r"no image has pixels for the resolutions \[128\] of --bucket_resolutions"):
        plan_buckets(torch.tensor([[80, 80]] * 4), BucketSettings((64, 128)), 8, 4, [])
    notes: list[str] = []
    plan_buckets(torch.tensor([[30, 30]] * 4), BucketSettings((64,)), 8, 4, notes)
    assert "4 images have too few pixels for 64x64, and are enlarged" in notes


class Rows:
    epoch = 0


def batches_of(plan: BucketPlan, processes: int = 1, incomplete: Incomplete = "drop", size: int = 4) -> BucketBatches:
    return BucketBatches(plan, Rows(), batch_size=size, processes=processes, seed=3, incomplete=incomplete)


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("incomplete", ["drop", "fill"])
def test_an_epoch_holds_every_item_once_but_for_the_rests(incomplete: Incomplete, processes: int) -> None:
    plan = place_images(shapes(200), STEPS, 2.0).plan
    batches = batches_of(plan, processes, incomplete)
    left_out = []
    for epoch in range(3):
        found = batches.batches_of(epoch)
        assert len(found) == len(batches)
        assert len(found) % processes == 0
        assert all(len(batch) == 4 and len(set(plan.places[batch].tolist())) == 1 for batch in found)
        counts = torch.bincount(torch.from_numpy(np.concatenate(found)), minlength=len(plan))
        if incomplete == "drop":
            assert counts.max() == 1
            assert int((counts == 0).sum()) == batches.left.dropped > 0
        else:
            assert counts.min() == 1
            assert int(counts.sum()) - len(plan) == batches.left.repeated > 0
        left_out.append(set(torch.nonzero(counts == 0).flatten().tolist()))
        # The passes of the processes have one resolution, but for what is left over.
        sides = [plan.buckets[int(plan.places[batch[0]])].resolution for batch in found]
        mixed = sum(len(set(sides[start : start + processes])) > 1 for start in range(0, len(found), processes))
        assert mixed <= len(STEPS) - 1
    if incomplete == "drop":
        assert left_out[0] != left_out[1]
    again = batches_of(plan, processes, incomplete).batches_of(1)
    assert all(np.array_equal(one, other) for one, other in zip(again, batches.batches_of(1)))


def test_the_loader_reads_the_epoch_of_its_rows() -> None:
    plan = place_images(shapes(60), STEPS, 2.0).plan
    rows = Rows()
    batches = BucketBatches(plan, rows, batch_size=4, processes=1, seed=0, incomplete="drop")
    first = list(batches)
    rows.epoch = 1
    assert first != list(batches)
    assert list(batches) == [batch.tolist() for batch in batches.batches_of(1)]


def test_the_work_of_a_pass_is_its_pixels_over_the_mean() -> None:
    lengths = torch.tensor([[64, 64]] * 8 + [[128, 128]] * 8)
    plan = place_images(lengths, STEPS, 2.0).plan
    batches = batches_of(plan, 2)
    found = batches.batches_of(5)
    areas = [plan.buckets[int(plan.places[batch[0]])].area for batch in found]
    mean = sum(areas) / len(areas)
    assert len(found) == 6
    for passes in range(3):
        expected = sum(areas[2 * passes : 2 * passes + 2]) / 2 / mean
        assert math.isclose(batches.work(5, passes, 1), expected)
    assert math.isclose(batches.work(5, 0, 3), 1.0)


def test_what_a_rest_becomes_is_told() -> None:
    plan = place_images(torch.tensor(SMALL), {64: 8}, 2.0).plan
    assert "every epoch leaves out 4 images" in tell_left(batches_of(plan), 1)[0]
    assert "trains 4 images once more" in tell_left(batches_of(plan, incomplete="fill"), 1)[0]
    assert tell_left(batches_of(plan, size=1), 1) == []
    with pytest.raises(DataError, match="fewer than one batch of 4 for each of 5 processes"):
        tell_left(batches_of(plan, 5), 5)

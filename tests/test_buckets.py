"""Aspect-ratio buckets, and the order in which a run sees them: a function of seed and step alone."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from kbdm_core.errors import KBDMError
from train.examples.buckets import BatchOrder, Bucket, buckets, nearest

SIZES = (23, 3, 8, 1)


@pytest.mark.parametrize("resolution", [32, 64, 96, 128, 200, 256, 320, 500, 512, 768, 1024])
def test_buckets_keep_area_aspect_and_step(resolution):
    found = buckets(resolution)
    assert len(set(found)) == len(found)
    step = 64 if resolution >= 256 else max(8, resolution // 4 // 8 * 8)
    for bucket in found:
        assert bucket.width % step == bucket.height % step == 0
        assert bucket.width * bucket.height <= resolution**2
        assert 0.5 <= bucket.width / bucket.height <= 2
        assert Bucket(bucket.height, bucket.width) in found
        assert bucket.latent == (bucket.height / 8, bucket.width / 8)
    assert Bucket(resolution // step * step, resolution // step * step) in found
    aspects = [bucket.width / bucket.height for bucket in found]
    assert aspects == sorted(aspects)


@pytest.mark.parametrize("resolution", [128, 256, 512, 768])
def test_no_bucket_could_be_higher_and_no_width_is_missing(resolution):
    """Against all pairs of sides: each bucket upright or square has the greatest height of its width."""
    found, step = buckets(resolution), min(64, resolution // 4)
    sides = range(step, 2 * resolution, step)
    expected = set()
    for width in sides:
        heights = [height for height in sides if width * height <= resolution**2]
        if heights and width <= max(heights) <= 2 * width:
            expected |= {(width, max(heights)), (max(heights), width)}
    assert {(bucket.width, bucket.height) for bucket in found} == expected


def test_128_px_has_its_square_and_others_beside_it():
    assert [str(bucket) for bucket in buckets(128)] == ["96x160", "128x128", "160x96"]
    assert [str(bucket) for bucket in buckets(512)] == ["384x640", "448x576", "512x512", "576x448", "640x384"]
    assert buckets(512, most=1.0) == (Bucket(512, 512),)


def test_the_nearest_bucket_is_that_of_the_least_ratio_between_aspects():
    found, random = buckets(512), torch.Generator().manual_seed(0)
    for width, height in torch.randint(10, 4000, (300, 2), generator=random).tolist():
        chosen = nearest(found, width, height)

        def ratio(bucket, aspect=width / height):
            return max(bucket.width / bucket.height / aspect, aspect * bucket.height / bucket.width)

        assert math.isclose(ratio(chosen), min(map(ratio, found)))
    assert nearest(found, 1, 1000) == found[0] and nearest(found, 1000, 1) == found[-1]
    assert nearest((Bucket(64, 64), Bucket(512, 512), Bucket(128, 128)), 33, 33) == Bucket(512, 512)


def test_sizes_that_cannot_be_are_refused():
    for arguments in ((31,), (512, 60), (512, 0), (512, 64, 0.9)):
        with pytest.raises(KBDMError, match=r"expected at least 32 px, a multiple of 8 px and at least 1:1"):
            buckets(*arguments)
    square = (Bucket(64, 64),)
    for members, batch in (((torch.arange(0),), 4), ((torch.arange(3),), 0), ((), 4)):
        with pytest.raises(KBDMError, match="at least one item in a batch and in each bucket"):
            BatchOrder(square, members, batch, seed=0)


def order(seed: int = 0, batch: int = 4) -> BatchOrder:
    """Items 0..34 in four buckets, not in a row."""
    items = torch.randperm(sum(SIZES), generator=torch.Generator().manual_seed(9))
    return BatchOrder(buckets(512)[: len(SIZES)], items.split(SIZES), batch, seed)


def test_each_epoch_shows_every_item_once_but_for_the_remainders():
    made = order()
    assert made.steps_per_epoch == 5 + 1 + 2 + 1
    for epoch in range(5):
        steps = [made.step(epoch * made.steps_per_epoch + index) for index in range(made.steps_per_epoch)]
        for bucket, items in steps:
            assert set(items.tolist()) <= set(made.members[made.buckets.index(bucket)].tolist())
        seen = Counter(torch.cat([items for _, items in steps]).tolist())
        assert set(seen.values()) == {1}
        left_out = set(range(sum(SIZES))) - set(seen)
        assert len(left_out) == 23 % 4 and left_out <= set(made.members[0].tolist())
        assert sorted(len(items) for _, items in steps) == [1, 3, 4, 4, 4, 4, 4, 4, 4]


def test_epochs_and_seeds_differ_and_buckets_alternate():
    made = order()
    epochs = [[made.step(epoch * 9 + index) for index in range(9)] for epoch in range(6)]
    bucket_orders = {tuple(str(bucket) for bucket, _ in epoch) for epoch in epochs}
    item_orders = {tuple(torch.cat([items for _, items in epoch]).tolist()) for epoch in epochs}
    assert len(bucket_orders) > 3 and len(item_orders) == 6
    other = order(seed=1)
    assert any(a[0] != b[0] or a[1].tolist() != b[1].tolist() for a, b in zip(epochs[0], (other.step(index) for index in range(9))))


def test_a_step_depends_on_seed_and_index_alone():
    forwards = {index: order().step(index) for index in range(40)}
    made = order()
    for index in reversed(range(40)):
        bucket, items = made.step(index)
        assert (bucket, items.tolist()) == (forwards[index][0], forwards[index][1].tolist())


@pytest.mark.parametrize("world", [2, 3, 4])
def test_ranks_together_see_what_one_process_sees(world):
    made = order(batch=4)
    for index in range(30):
        bucket, items = made.step(index)
        shares = [made.step(index, rank, world) for rank in range(world)]
        assert {share[0] for share in shares} == {bucket}
        if len(items) >= world:
            together = torch.empty_like(items)
            for rank, (_, share) in enumerate(shares):
                together[rank::world] = share
            assert torch.equal(together, items)
        assert all(len(share) > 0 for _, share in shares)


def test_a_batch_of_fewer_items_than_processes_goes_round():
    made = BatchOrder((Bucket(64, 64),), (torch.tensor([7, 5]),), 4, seed=0)
    items = made.step(0)[1].tolist()
    assert [made.step(0, rank, 5)[1].tolist() for rank in range(5)] == [[items[rank % 2]] for rank in range(5)]

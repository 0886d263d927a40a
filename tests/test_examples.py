"""The adapter's examples: latents and masks of every variant, computed once and found again, from folders of good and broken pictures."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from kbdm_core.errors import KBDMError
from kbdm_core.guidance import adapter_guidance
from kbdm_core.pose_branch import level_size
from kbdm_core.soft_mask import pool_mask
from testbed.sample_data import body, openpose_json, write_captioned
from testbed.training import small_run
from train.data.records import DataTable, load_image
from train.data.sources import open_dataset
from train.examples import sources
from train.examples.buckets import Bucket, buckets
from train.examples.encoding import ExamplesTable, encode_entries, list_entries
from train.examples.examples import Examples, open_examples
from train.examples.masks import latent_masks, pose_picture
from train.examples.sources import DatasetSource, MiniSource, mini_source
from train.examples.variants import AugmentTable
from train.mini.scenes import WorldTable
from train.mini.world.scene import scene

SIZES = ((100, 100), (60, 110), (130, 75), (64, 64), (90, 95))
AUGMENT = AugmentTable(variants=3)


class Encoder:
    """Stands for an autoencoder: averages of 8 x 8 pixels as means, of their squares as deviations. Remembers the batches it has seen."""

    def __init__(self):
        self.seen: list[tuple[int, ...]] = []

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        assert pixels.dtype == torch.float32 and pixels.abs().max() <= 1
        self.seen.append(tuple(pixels.shape))
        four = torch.cat([pixels, pixels.mean(1, keepdim=True)], 1)
        return F.avg_pool2d(torch.cat([four, four.square()], 1), 8)

    @property
    def pictures(self) -> int:
        return sum(shape[0] for shape in self.seen)


def write_pictures(root: Path, count: int) -> Path:
    """Pictures of several sizes with captions and poses of one or two people."""
    for i in range(count):
        size = SIZES[i % len(SIZES)]
        path = write_captioned(root / f"{i:03}.png", i, f"picture {i}", size)
        path.with_suffix(".json").write_text(openpose_json([body(i, size), body(100 + i, size)][: 1 + i % 2], size))
    return root


def source_of(root: Path) -> DatasetSource:
    return DatasetSource(open_dataset(DataTable(root)))


@pytest.fixture
def table(tmp_path) -> ExamplesTable:
    return ExamplesTable(resolution=128, batch=4, cache=tmp_path / "cache")


def opened(folder: Path, source, table: ExamplesTable, encode, key: str = "vae", augment: AugmentTable = AUGMENT, dry: bool = False) -> Examples:
    with small_run(folder / "run", dry) as run:
        return open_examples(run, source, table, augment, encode, key)


def whole(examples: Examples) -> list:
    """One batch per variant of each bucket, with its items."""
    order = examples.order(len(examples), seed=0)
    found = []
    for bucket, items in zip(order.buckets, order.members):
        for number in range(examples.variants):
            found.append((bucket, items, number, examples.batch(bucket, items, torch.full_like(items, number))))
    return found


def test_every_variant_has_the_latents_that_the_encoder_gives_it_alone(table, tmp_path):
    source, encode = source_of(write_pictures(tmp_path / "pictures", 10)), Encoder()
    examples = opened(tmp_path, source, table, encode)
    assert len(examples) == 10 and encode.pictures == 30 and max(shape[0] for shape in encode.seen) == 4
    assert examples.captions == tuple(f"picture {i}" for i in range(10))
    alone, seen = Encoder(), set()
    for bucket, items, number, batch in whole(examples):
        assert batch.latent_mean.shape == batch.latent_std.shape == (len(items), 4, *bucket.latent)
        assert batch.pose_pictures.shape == (len(items), bucket.height, bucket.width, 3) and batch.masks.shape == (len(items), 2, *bucket.latent)
        for row, item in enumerate(items.tolist()):
            entry = examples.entries[item]
            picture = entry.variant(AUGMENT, number).picture(load_image(source.dataset.records[item]))
            pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 127.5 - 1
            expected = alone(pixels)[0]
            assert torch.allclose(torch.cat([batch.latent_mean[row], batch.latent_std[row]]), expected, atol=1e-3)
            assert batch.captions[row] == f"picture {item}"
            seen.add((item, number))
    assert len(seen) == 30 and len({str(entry.bucket) for entry in examples.entries}) == 3


def test_masks_are_those_that_inference_derives_from_the_same_pose_picture(table, tmp_path, adapter):
    examples = opened(tmp_path, source_of(write_pictures(tmp_path / "pictures", 6)), table, Encoder())
    for bucket, _, _, batch in whole(examples):
        guidance = adapter_guidance(adapter.adapter, pose_image=batch.pose_pictures)
        for kind, mask in enumerate(guidance.pose.masks):
            assert torch.equal(batch.masks[:, kind], pool_mask(mask, bucket.latent).unflatten(1, bucket.latent))
        assert (batch.masks[:, 0] >= batch.masks[:, 1]).all() and batch.has_pose.all() and 0 < batch.masks.mean() < 1


def limbs(bucket: Bucket, seed: int) -> torch.Tensor:
    """A pose picture of one person at random, [1,H,W,3]."""
    size = bucket.width, bucket.height
    mini = MiniSource(np.zeros((1, *size[::-1], 3), np.uint8), seed)
    return pose_picture(mini.pose(0, *size))[None]


@pytest.mark.parametrize("bucket", buckets(512, 128) + (Bucket(128, 192), Bucket(128, 128)), ids=str)
def test_pooling_latent_masks_to_the_blocks_equals_pooling_the_masks_of_full_size(bucket, adapter):
    """For sides that are multiples of 64 px, bit by bit, on all four levels of the UNet."""
    picture = limbs(bucket, seed=bucket.width)
    masks = latent_masks(picture)
    for kind, full in enumerate(adapter_guidance(adapter.adapter, pose_image=picture).pose.masks):
        for level in range(4):
            size = level_size(*bucket.latent, level)
            assert size == (bucket.height >> (3 + level), bucket.width >> (3 + level))
            assert torch.equal(pool_mask(masks[:, kind], size), pool_mask(full, size))


def test_in_other_buckets_a_block_is_the_same_or_reaches_one_latent_further(adapter):
    for bucket in buckets(128):
        for seed in range(6):
            picture = limbs(bucket, seed)
            masks = latent_masks(picture)
            for kind, full in enumerate(adapter_guidance(adapter.adapter, pose_image=picture).pose.masks):
                for level in range(4):
                    size = level_size(*bucket.latent, level)
                    ours, theirs = pool_mask(masks[:, kind], size), pool_mask(full, size)
                    exact = all(side % part == 0 for side, part in zip(bucket.latent, size))
                    assert torch.equal(ours, theirs) if exact else (ours >= theirs).all()


def test_the_pose_of_each_variant_lies_where_its_picture_lies(table, tmp_path):
    """A picture of its own skeleton: what is drawn from the moved pose covers what was moved with the picture."""
    source = source_of(write_pictures(tmp_path / "pictures", 5))
    for record in source.dataset.records:
        skeleton = pose_picture(record.pose())
        Image.fromarray((skeleton.numpy() * 255).astype(np.uint8)).save(record.image)
    encode = Encoder()
    examples = opened(tmp_path, source, table, encode, augment=replace(AUGMENT, colour=0.0))
    for _, _, _, batch in whole(examples):
        drawn = F.avg_pool2d(batch.pose_pictures.amax(-1)[:, None] * 2 - 1, 8)[:, 0]
        moved = batch.latent_mean[:, :3].amax(1)
        correlation = torch.corrcoef(torch.stack([drawn.flatten(), moved.flatten()]))[0, 1]
        assert correlation > 0.8


def test_what_is_in_the_cache_is_neither_read_nor_encoded_again(table, tmp_path, monkeypatch):
    source, encode = source_of(write_pictures(tmp_path / "pictures", 7)), Encoder()
    first = opened(tmp_path, source, table, encode)
    monkeypatch.setattr(sources, "load_image", None)
    monkeypatch.setattr("train.data.image_keys._sha256", None)
    monkeypatch.setattr("train.examples.encoding.latent_masks", None)
    again = opened(tmp_path, source, table, None)
    assert again.fingerprint == first.fingerprint
    for one, other in zip(whole(first), whole(again)):
        assert torch.equal(one[3].latent_mean, other[3].latent_mean) and torch.equal(one[3].masks, other[3].masks)


def test_a_changed_picture_and_another_autoencoder_are_encoded_anew(table, tmp_path):
    source, encode = source_of(write_pictures(tmp_path / "pictures", 5)), Encoder()
    first = opened(tmp_path, source, table, encode)
    assert encode.pictures == 15
    Image.new("RGB", (100, 100), "red").save(source.dataset.records[0].image)
    changed = opened(tmp_path, source, table, encode)
    assert encode.pictures == 18 and changed.fingerprint != first.fingerprint
    assert (changed.batch(Bucket(128, 128), torch.tensor([0]), torch.tensor([0])).latent_mean[:, 0] == 1).all()
    opened(tmp_path, source, table, encode, key="another vae")
    assert encode.pictures == 33
    turned = opened(tmp_path, source, table, encode, augment=replace(AUGMENT, rotation=9.0))
    assert encode.pictures == 38 and turned.fingerprint != changed.fingerprint  # of three variants, only the drawn one


def test_a_changed_pose_changes_its_masks_and_no_latent(table, tmp_path):
    source, encode = source_of(write_pictures(tmp_path / "pictures", 3)), Encoder()
    first = opened(tmp_path, source, table, encode)
    source.dataset.records[0].image.with_suffix(".json").write_text(openpose_json([body(77, SIZES[0])], SIZES[0]))
    second = opened(tmp_path, source, table, None)
    one, other = (each.batch(Bucket(128, 128), torch.tensor([0]), torch.tensor([0])) for each in (first, second))
    assert torch.equal(one.latent_mean, other.latent_mean) and not torch.equal(one.masks, other.masks)
    assert first.fingerprint != second.fingerprint


def test_a_run_that_ends_in_the_middle_keeps_what_it_encoded_and_the_next_one_does_the_rest(table, tmp_path):
    source = source_of(write_pictures(tmp_path / "pictures", 10))
    expected = opened(tmp_path, source, replace(table, cache=tmp_path / "other"), Encoder())

    class Power(Encoder):
        def __call__(self, pixels):
            if len(self.seen) == 3:
                raise KeyboardInterrupt
            return super().__call__(pixels)

    failing, encode = Power(), Encoder()
    with pytest.raises(KeyboardInterrupt):
        opened(tmp_path, source, table, failing)
    assert len(failing.seen) == 3 and 0 < failing.pictures < 30
    found = opened(tmp_path, source, table, encode)
    assert encode.pictures == 30 - failing.pictures and found.fingerprint == expected.fingerprint
    for one, other in zip(whole(expected), whole(found)):
        assert torch.equal(one[3].latent_mean, other[3].latent_mean) and torch.equal(one[3].masks, other[3].masks)


def test_a_request_to_stop_is_obeyed_between_pictures(table, tmp_path):
    source, encode, calls = source_of(write_pictures(tmp_path / "pictures", 8)), Encoder(), iter(range(100))

    def stop_at_the_sixth():
        if next(calls) == 5:
            raise KeyboardInterrupt

    entries, _ = list_entries(source, range(8), buckets(128), table)
    with pytest.raises(KeyboardInterrupt):
        encode_entries(source, entries, table, AUGMENT, encode, "vae", check=stop_at_the_sixth)
    done = encode.pictures
    assert 0 < done < 24
    encode_entries(source, entries, table, AUGMENT, encode, "vae")
    assert encode.pictures == 24


def test_ranks_share_the_work_and_find_what_one_process_finds(table, tmp_path):
    source, alone = source_of(write_pictures(tmp_path / "pictures", 9)), Encoder()
    expected = opened(tmp_path, source, replace(table, cache=tmp_path / "alone"), alone)
    encoders = [Encoder() for _ in range(3)]
    for rank, encode in enumerate(encoders):
        entries, problems = list_entries(source, range(9)[rank::3], buckets(128), table, rank)
        good, more = encode_entries(source, entries, table, AUGMENT, encode, "vae", rank)
        assert [entry.number for entry in good] == list(range(9))[rank::3] and problems == more == []
    assert [encode.pictures for encode in encoders] == [9, 9, 9] and alone.pictures == 27
    found = opened(tmp_path, source, table, None)
    assert found.fingerprint == expected.fingerprint
    for one, other in zip(whole(expected), whole(found)):
        assert torch.equal(one[3].latent_mean, other[3].latent_mean)


def test_the_same_picture_under_many_names_is_encoded_once(table, tmp_path):
    root = write_pictures(tmp_path / "pictures", 1)
    for i in range(6):
        shutil.copy(root / "000.png", root / f"copy {i}.png")
        shutil.copy(root / "000.json", root / f"copy {i}.json")
        (root / f"copy {i}.txt").write_text(f"copy {i}")
    encode = Encoder()
    examples = opened(tmp_path, source_of(root), table, encode)
    assert len(examples) == 7 and encode.pictures == 3 and len(set(examples.keys)) == 1


def broken_pictures(root: Path) -> Path:
    """Ten pictures, of which the first two are whole."""
    write_pictures(root, 10)
    (root / "002.png").write_bytes((root / "002.png").read_bytes()[:-300])
    (root / "003.png").write_bytes(b"a text called .png")
    Image.new("RGB", (1, 40)).save(root / "004.png")
    Image.new("RGB", (20, 4000)).save(root / "005.png")
    (root / "006.json").unlink()
    (root / "007.json").write_text("{")
    (root / "008.json").write_text(openpose_json([np.zeros((17, 3))], SIZES[3]))
    far = np.zeros((17, 3))
    far[0] = (3, 3, 1)
    Image.new("RGB", (400, 100)).save(root / "009.png")
    (root / "009.json").write_text(openpose_json([far], (400, 100)))
    return root


def test_what_cannot_be_used_is_named_and_left_out(table, tmp_path):
    source = source_of(broken_pictures(tmp_path / "pictures"))
    examples = opened(tmp_path, source, table, Encoder())
    assert examples.captions == ("picture 0", "picture 1")
    report = json.loads((tmp_path / "run/problems.json").read_text())
    kinds = ["unreadable_image"] * 4 + ["missing_pose", "unreadable_pose", "empty_pose", "empty_pose"]
    assert [problem["kind"] for problem in report["problems"]] == kinds
    assert [problem["name"] for problem in report["problems"]] == [f"{i:03}.png" for i in range(2, 10)]
    assert (report["records"], report["usable"]) == (10, 6)
    messages = [problem["message"] for problem in report["problems"]]
    assert "1 x 40 pixels; expected at least 8" in messages[2] and "004.png" in messages[2]
    assert "20 x 4000" in messages[3] and "no joint is left on the 160x96 px" in messages[7]


def test_a_picture_without_a_pose_is_learnt_with_an_empty_one_if_the_table_says_so(table, tmp_path):
    source = source_of(broken_pictures(tmp_path / "pictures"))
    examples = opened(tmp_path, source, replace(table, need_pose=False), Encoder())
    assert examples.captions == tuple(f"picture {i}" for i in (0, 1, 6, 7, 8, 9))
    for _, items, number, batch in whole(examples):
        for row, item in enumerate(items.tolist()):
            if item >= 2 and number < 2:
                assert not batch.has_pose[row] and not batch.masks[row].any() and not batch.pose_pictures[row].any()
            elif number < 2:
                assert batch.has_pose[row] and batch.masks[row].any() and batch.pose_pictures[row].any()
    report = json.loads((tmp_path / "run/problems.json").read_text())
    assert report["counts"] == {"unreadable_image": 4, "unreadable_pose": 1}


def test_turned_grey_and_transparent_pictures_are_encoded_as_they_are_seen(table, tmp_path):
    root, exif = tmp_path / "pictures", Image.Exif()
    root.mkdir()
    exif[0x0112] = 6  # stored lying on its side
    upright = np.zeros((128, 128, 3), np.uint8)
    upright[:64] = 255  # light above
    Image.fromarray(np.rot90(upright).copy()).save(root / "turned.png", exif=exif)
    Image.new("L", (96, 160), 100).save(root / "grey.png")
    Image.new("RGBA", (160, 96), (0, 0, 0, 0)).save(root / "clear.png")
    for name in ("turned", "grey", "clear"):
        (root / f"{name}.txt").write_text(name)
    examples = opened(tmp_path, source_of(root), replace(table, need_pose=False), Encoder())
    means = {}
    for _, _, number, batch in whole(examples):
        for row, caption in enumerate(batch.captions):
            means[caption, number] = batch.latent_mean[row, 0]
    assert means["turned", 0].shape == (16, 16) and (means["turned", 0][:8] == 1).all() and (means["turned", 0][8:] == -1).all()
    assert means["grey", 0].shape == (20, 12) and torch.allclose(means["grey", 0], torch.tensor(100 / 127.5 - 1), atol=1e-3)
    assert means["clear", 1].shape == (12, 20) and (means["clear", 1] == 1).all()


def test_nothing_to_learn_from_is_an_error_that_names_the_first_reason(table, tmp_path):
    root = write_pictures(tmp_path / "pictures", 2)
    for path in root.glob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(KBDMError, match=r"none of the 2 pictures can be used \(first: 000\.png: "):
        opened(tmp_path, source_of(root), table, Encoder())


def test_a_dry_run_touches_a_few_pictures_and_writes_nothing(table, tmp_path):
    source, encode = source_of(write_pictures(tmp_path / "pictures", 40)), Encoder()
    before = sorted(tmp_path.rglob("*"))
    examples = opened(tmp_path, source, table, encode, dry=True)
    assert sorted(tmp_path.rglob("*")) == before
    assert len(examples) == 40 and encode.pictures == 4 * 3
    for bucket, items, _, batch in whole(examples):
        assert batch.latent_mean.shape == (len(items), 4, *bucket.latent)
    bucket, items = examples.order(16, seed=0).step(0)
    assert len(examples.batch(bucket, items, torch.zeros_like(items)).captions) == len(items) >= 10


def test_mini_human_is_a_source_like_any_other(table, tmp_path):
    source = mini_source(WorldTable(first=500, scenes=5), check=lambda: None, dry=5)
    examples = opened(tmp_path, source, table, Encoder(), augment=AugmentTable())
    assert len(examples) == 5 and {entry.bucket for entry in examples.entries} == {Bucket(128, 128)}
    items = torch.arange(5)
    for number in range(2):
        batch = examples.batch(Bucket(128, 128), items, torch.full_like(items, number))
        for item in range(5):
            drawn = scene(500 + item)
            pixels = torch.from_numpy(source.pictures[item].copy()).permute(2, 0, 1)[None] / 127.5 - 1
            expected = Encoder()(pixels if number == 0 else pixels.flip(-1))[0, :4]
            assert torch.allclose(batch.latent_mean[item], expected, atol=1e-3) and batch.captions[item] == drawn.caption
            if number == 0:
                assert torch.equal(batch.pose_pictures[item], pose_picture(drawn.pose))


def test_batches_read_ahead_are_the_same_batches(table, tmp_path):
    examples = opened(tmp_path, source_of(write_pictures(tmp_path / "pictures", 9)), table, Encoder())
    order = examples.order(2, seed=3, items=torch.tensor([0, 1, 3, 5, 6, 8]))
    requests = [(bucket, items, (items + step) % 3) for step in range(7) for bucket, items in [order.step(step)]]
    found = list(examples.batches(iter(requests)))
    assert len(found) == 7 and {int(item) for _, items, _ in requests for item in items} == {0, 1, 3, 5, 6, 8}
    for request, batch in zip(requests, found):
        again = examples.batch(*request)
        assert again.captions == batch.captions and torch.equal(again.latent_std, batch.latent_std)
        assert torch.equal(again.pose_pictures, batch.pose_pictures) and torch.equal(again.masks, batch.masks)


def test_what_does_not_fit_is_refused(table, tmp_path):
    source = source_of(write_pictures(tmp_path / "pictures", 2))
    with pytest.raises(KBDMError, match=r"latents of shape \[4, 3, 128, 128\] from pictures \[4, 3, 128, 128\]; expected \[4, 8, 16, 16\]"):
        opened(tmp_path, source_of(write_pictures(tmp_path / "squares", 1)), replace(table, batch=4), lambda x: x, augment=AugmentTable(variants=4))
    examples = opened(tmp_path, source, table, Encoder())
    square, first = Bucket(128, 128), torch.tensor([0])
    for bucket, items, variants in ((square, [1], [0]), (square, [0, 1], [0, 0]), (square, [0], [3]), (square, [0], [-1]), (square, [], [])):
        with pytest.raises(KBDMError, match="expected items of that bucket, each in a variant below 3"):
            examples.batch(bucket, torch.tensor(items, dtype=torch.int64), torch.tensor(variants, dtype=torch.int64))
    with pytest.raises(KBDMError, match="at least one item"):
        examples.order(4, seed=0, items=first[:0])

"""Items, batches, and which images a step sees: joint resizing, determinism, every image once an epoch."""

import math
import multiprocessing
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lib.data.dataset import DistortionData, make_loader, training_data
from lib.data.negatives import add_negatives
from lib.data.order import StepSampler
from lib.data.pixels import to_pixels
from lib.data.splits import Source, labelled, validation_source
from lib.errors import InputError
from lib.model.encoders.backbone import load_backbone
from lib.model.encoders.text import TextEncoder
from lib.stores import LabelStore


@pytest.fixture(scope="module")
def text(micro_checkpoint):
    encoder, tokenizer = load_backbone(str(micro_checkpoint))
    return TextEncoder(tokenizer, encoder.max_text_tokens(32, 32))


def change_manifest(folder, change):
    table = pd.read_parquet(folder / "manifest.parquet")
    change(table)
    table.to_parquet(folder / "manifest.parquet", index=False)


def ids_of(data) -> list[str]:
    return data.entries["id"].to_pylist()


# Items


def test_an_item_is_image_label_and_prompt(experiment, prepared):
    store = LabelStore(prepared / "train")
    wild = dict.fromkeys(("hflip", "random_crop", "colour_jitter", "grey"), 1.0)  # not where nothing is trained
    data = DistortionData(experiment(input_size=32, mask_size=16, **wild), [Source(store, store.ids)], train=False)
    assert len(data) == len(store.ids)
    for index, id in enumerate(store.ids):
        item = data[0, index, 1]
        row = store.table.loc[id]
        assert (item["id"], item["prompt"], item["weight"]) == (id, row["prompt"], 1.0)
        assert item["score"] == pytest.approx((row["mos"] - 1) / 4) and type(item["score"]) is float
        assert torch.equal(item["pixel_values"], to_pixels(store.image(id), (32, 32)))
        assert item["heatmap"].shape == (16, 16) and item["heatmap"].dtype == torch.uint8
        assert item["heatmap"].float().mean().item() == pytest.approx(store.heatmap(id).mean(), abs=2.5)


def test_items_depend_on_seed_epoch_and_index_only(experiment, prepared):
    config = experiment(seed=5, hflip=0.5, random_crop=1.0)
    one, two = training_data(config), training_data(config)
    for key in [(0, 3, 1), (1_000_004, 3, 1)]:
        first = one[key]
        one[9, 1, 1]  # what was asked for before does not matter
        np.random.seed(1)
        torch.manual_seed(1)
        assert torch.equal(first["pixel_values"], two[key]["pixel_values"])
        assert torch.equal(first["heatmap"], two[key]["heatmap"])
    pixels = [one[epoch, 3, 1]["pixel_values"] for epoch in (0, 1, 2)]
    assert not torch.equal(pixels[0], pixels[1]) and not torch.equal(pixels[1], pixels[2])
    assert not torch.equal(training_data(experiment(seed=6, random_crop=1.0))[0, 3, 1]["pixel_values"], pixels[0])


def test_an_image_without_label_has_an_empty_heatmap_and_a_lost_one_is_told(experiment, own):
    store = LabelStore(own / "test")

    def forget(table):
        table.loc[0, ["labelled"]] = False
        table.loc[0, ["score", "mos"]] = math.nan

    change_manifest(own / "test", forget)
    store.heatmap_path(store.ids[0]).unlink()
    store = LabelStore(own / "test")
    data = DistortionData(experiment(), [Source(store, store.ids)], train=True)
    item = data[0, 0, 1]
    assert math.isnan(item["score"]) and item["heatmap"].sum() == 0
    assert labelled(store) == store.ids[1:]
    path = store.heatmap_path(store.ids[1])
    cv2.imwrite(str(path), np.zeros((5, 6), np.uint8))
    with pytest.raises(InputError, match=f"{path} has 6 x 5 pixels, its image .*; prepare the data again"):
        data[0, 1, 1]
    path.unlink()
    with pytest.raises(InputError, match=f"{path} does not exist"):
        data[0, 1, 1]


# Batches


def test_workers_give_the_same_batches(experiment, text):
    data = training_data(experiment(seed=1))
    batches = list(StepSampler(len(data), 1, 0, 5, 1).flat(0, 6))
    alone = list(make_loader(data, text, batches, 0))
    for a, b in zip(make_loader(data, text, iter(batches), 2), alone, strict=True):
        assert a["id"] == b["id"]
        assert all(torch.equal(a[key], b[key]) for key in a if key != "id")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_unreadable_image_is_told_the_same_by_a_worker_which_then_ends(experiment, text, num_workers):
    data = training_data(experiment())
    rows = data.entries.to_pylist()
    rows[5]["image"] = "/nowhere/torn.png"
    data.entries = pa.Table.from_pylist(rows)
    others = set(multiprocessing.active_children())  # that earlier tests have left to joblib
    batches = make_loader(data, text, [[(0, index, 1)] for index in range(24)], num_workers)
    with pytest.raises(InputError) as told:
        for batch in batches:
            assert batch["id"] != [rows[5]["id"]]
    assert str(told.value) == "/nowhere/torn.png does not exist"
    assert not set(multiprocessing.active_children()) - others


BROKEN = """
import sys
from lib.config import Experiment
from lib.data.dataset import make_loader, training_data
data = training_data(Experiment.from_yaml(sys.argv[1]))
batches = make_loader(data, lambda prompts: {}, [[(0, index, 1)] for index in range(24)], 1)
next(batches)
print(1 / 0)
"""


def test_a_process_ends_with_an_error_while_its_worker_waits(experiment, tmp_path):
    experiment().save(tmp_path / "config.yaml")
    command = [sys.executable, "-c", BROKEN, str(tmp_path / "config.yaml")]
    done = subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True, text=True, timeout=500)
    assert done.returncode == 1 and done.stderr.endswith("ZeroDivisionError: division by zero\n")


# The order of images


def seen(length, batch_size, accumulate, world, step, seed=0, stage=0):
    """Micro-batches of all ranks of a step: [rank][micro-batch] -> list of (epoch, index, weight)."""
    return [
        StepSampler(length, seed, stage, batch_size, accumulate, rank, world).micro_batches(step)
        for rank in range(world)
    ]


@settings(max_examples=150)
@given(st.integers(1, 60), st.integers(1, 7), st.integers(1, 4), st.integers(1, 4), st.integers(0, 3))
@example(5, 1, 1, 4, 0)
@example(6, 2, 2, 2, 0)
def test_an_epoch_sees_every_image_once(length, batch_size, accumulate, world, epoch):
    sampler = StepSampler(length, 0, 0, batch_size, accumulate, 0, world)
    images, keys = [], set()
    for step in range(epoch * sampler.steps_per_epoch, (epoch + 1) * sampler.steps_per_epoch):
        ranks = seen(length, batch_size, accumulate, world, step)
        assert len({len(batches) for batches in ranks}) == 1  # all ranks take part equally often
        real = [index for batches in ranks for batch in batches for _, index, weight in batch if weight]
        assert len(real) == sum(len(part) for parts in sampler.shares(step) for part in parts)
        assert len(real) <= batch_size * accumulate * world
        for batches in ranks:
            assert len(batches) <= accumulate + 1
            for batch in batches:
                assert 1 <= len(batch) <= batch_size
                assert {weight for _, _, weight in batch} in ({1}, {0}) and (batch[0][2] or len(batch) == 1)
        images += real
        keys |= {key for batches in ranks for batch in batches for key, _, _ in batch}
    assert sorted(images) == list(range(length))
    assert keys == {epoch}


@settings(max_examples=80)
@given(st.integers(1, 60), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.integers(0, 5))
def test_ranks_together_are_one_process_with_the_global_batch(length, batch_size, accumulate, world, step):
    """Micro-batch by micro-batch, so that batch statistics are the same too."""
    together = seen(length, batch_size * world, accumulate, 1, step)[0]
    ranks = seen(length, batch_size, accumulate, world, step)
    joined = [[key for batches in ranks for key in batches[number] if key[2]] for number in range(len(ranks[0]))]
    assert joined == together


def test_the_order_changes_by_epoch_stage_and_seed_and_nothing_else():
    def order(seed=0, stage=0, epoch=0, batch_size=4):
        sampler = StepSampler(40, seed, stage, batch_size, 1)
        first = epoch * sampler.steps_per_epoch
        return [key for batch in sampler.flat(first, first + sampler.steps_per_epoch) for key in batch]

    def indices(**options):
        return [index for _, index, _ in order(**options)]

    assert order() == order() and indices(batch_size=8) == indices()
    assert len({tuple(indices(**change)) for change in ({}, {"seed": 1}, {"stage": 1}, {"epoch": 1})}) == 4
    # The key decides augmentation: warm-up and main stage do not repeat each other.
    assert {key for key, _, _ in order(stage=1)}.isdisjoint({key for key, _, _ in order(stage=0)})


# Which images


def test_without_val_split_the_val_split_is_validated(experiment, own):
    config = experiment(data_path=str(own))
    store, ids = validation_source(config)[:2]
    assert store.path == own / "val" and ids == store.ids
    change_manifest(own / "val", lambda table: table.__setitem__("labelled", False))
    assert validation_source(config) is None
    shutil.rmtree(own / "val")
    assert validation_source(config) is None


def test_negatives_are_appended(experiment, own, tmp_path):
    with pytest.raises(InputError, match="negatives holds no manifest.parquet"):
        training_data(experiment(data_path=str(own), negative_num=1))
    for number in range(6):
        cv2.imwrite(str(tmp_path / f"{number}.jpg"), np.full((40, 60, 3), 40 * number, np.uint8))
    rows = [f"{number}.jpg,photograph {number}" for number in range(6)]
    (tmp_path / "captions.csv").write_text("\n".join(["image,caption", *rows]))
    add_negatives(tmp_path, own, workers=1)
    change_manifest(own / "train", lambda table: table.loc[[1, 4], ["labelled"]].pipe(lambda part: table.update(~part)))
    plain = training_data(experiment(data_path=str(own)))
    store = LabelStore(own / "train")
    assert ids_of(plain) == [id for number, id in enumerate(store.ids) if number not in (1, 4)]  # the labelled ones
    config = experiment(data_path=str(own), negative_num=4, seed=1)
    data = training_data(config)
    assert ids_of(data)[:-4] == ids_of(plain)
    for index in range(len(plain), len(plain) + 4):
        item = data[0, index, 1]
        assert item["score"] == 1.0 and item["heatmap"].sum() == 0 and item["prompt"] == f"photograph {item['id']}"
    chosen = ids_of(data)[-4:]
    assert chosen == ids_of(training_data(config))[-4:] and len(set(chosen)) == 4
    assert len({tuple(ids_of(training_data(replace(config, seed=seed)))[-4:]) for seed in range(8)}) > 1
    with pytest.raises(InputError, match="negative_num: 7, but .*negatives holds 6; prepare more or lower it"):
        training_data(experiment(data_path=str(own), negative_num=7))


def test_data_that_cannot_be_trained_on(experiment, own, tmp_path):
    with pytest.raises(InputError, match="holds no manifest.parquet; run notebooks/1_data_processing.ipynb"):
        training_data(experiment(data_path=str(tmp_path / "nowhere")))
    change_manifest(own / "train", lambda table: table.__setitem__("labelled", False))
    with pytest.raises(InputError, match="has no labelled image to train on; check its problems.csv"):
        training_data(experiment(data_path=str(own)))
    with pytest.raises(InputError, match="val_split is 99"):
        training_data(experiment(data_path=str(own), val_split=99))

"""The images that a run holds out are its own for good, whatever becomes of the prepared data."""

import json
import os
import signal

import pandas as pd
import pytest
from watching import watched

from lib.data.prepare import prepare
from lib.data.splits import hold_out, validation_source
from lib.errors import InputError
from lib.evaluate.run_on_split import unpredicted
from lib.signals import Interrupted
from lib.stores import HELD_OUT
from lib.train.loop import Run, train

N, SEED = 6, 2


@pytest.fixture
def own(raw, tmp_path):
    """Prepared data to be changed."""
    prepare(raw, tmp_path / "data", workers=1)
    return tmp_path / "data"


@pytest.fixture
def config(experiment, own):
    return experiment(data_path=str(own), val_split=N, seed=SEED, epoch=1, warmup_epoch=0, batch_size=8)


def draw(data):
    return data / "train" / f"held_out_{N}_{SEED}.json"


def drop(data, ids) -> None:
    """Prepare the data anew without these images, as an error message about the draw tells to: it is deleted."""
    path = data / "train" / "manifest.parquet"
    table = pd.read_parquet(path)
    table[~table["id"].isin(ids)].to_parquet(path, index=False)
    draw(data).unlink()


def test_a_run_keeps_the_images_that_it_did_not_train_on(config, own):
    with watched() as seen:
        run = train(config)
    trained = {id for row in seen["steps"] for ids in row["ids"] for id in ids}
    before = hold_out(own, N, SEED)
    assert json.loads((run / "held_out.json").read_text()) == before
    drop(own, sorted(trained)[:3])
    assert trained & set(hold_out(own, N, SEED))  # what the next run may hold out, this one has seen
    assert unpredicted(run, own, HELD_OUT).images == unpredicted(run, own, HELD_OUT).labelled_ids == before


def test_images_that_are_gone_are_not_replaced_by_others(config, own):
    run = train(config)
    drop(own, hold_out(own, N, SEED)[:1])
    told = "held_out.json names images that .*train no longer holds with labels; restore the data or name another split"
    with pytest.raises(InputError, match=told):
        unpredicted(run, own, HELD_OUT)
    assert not draw(own).exists()  # and none are drawn for it
    for damaged in ("", "3", "[[]]"):
        (run / "held_out.json").write_text(damaged)
        with pytest.raises(InputError, match="held_out.json is no list of ids.*copy the run again"):
            unpredicted(run, own, HELD_OUT)


def interrupted(config, monkeypatch) -> None:
    """Train until the first step's end."""
    update = Run._update

    def update_and_signal(run, *arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return update(run, *arguments)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(Run, "_update", update_and_signal)
        train(config)


def test_a_resumed_run_keeps_them_too(config, own, monkeypatch):
    interrupted(config, monkeypatch)
    before = hold_out(own, N, SEED)
    others = [id for id in pd.read_parquet(own / "train" / "manifest.parquet")["id"] if id not in before][:N]
    draw(own).write_text(json.dumps(others))
    assert validation_source(config)[1] == before
    train(config)
    assert json.loads((config.folder / "held_out.json").read_text()) == before


def test_a_run_that_has_learned_nothing_yet_draws_anew(config, own, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(ConnectionError):
        patch.setattr(Run, "to_the_end", lambda *_: (_ for _ in ()).throw(ConnectionError))
        train(config)
    drop(own, hold_out(own, N, SEED)[:1])
    run = train(config)
    assert json.loads((run / "held_out.json").read_text()) == hold_out(own, N, SEED)

"""The images that a run holds out are its own for good, whatever becomes of the prepared data."""

import json

import pandas as pd
import pytest
from watching import signal_in_step, watched

from lib.data.splits import hold_out, validation_source
from lib.errors import InputError
from lib.evaluate.run_on_split import unpredicted
from lib.signals import Interrupted
from lib.stores import HELD_OUT
from lib.train.loop import Run, train

N, SEED = 6, 2


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


def test_a_run_keeps_the_images_that_it_did_not_train_on_also_when_resumed(config, own):
    with signal_in_step(1), pytest.raises(Interrupted):
        train(config)
    before = hold_out(own, N, SEED)
    trained = [id for id in pd.read_parquet(own / "train" / "manifest.parquet")["id"] if id not in before]
    draw(own).write_text(json.dumps(trained[:N]))
    assert validation_source(config)[1] == before
    with watched() as seen:
        run = train(config)
    assert json.loads((run / "held_out.json").read_text()) == before
    assert not {id for row in seen["steps"] for ids in row["ids"] for id in ids} & set(before)
    drop(own, trained[:3])
    assert set(trained) & set(hold_out(own, N, SEED))  # what the next run may hold out, this one has seen
    assert unpredicted(run, own, HELD_OUT).images == unpredicted(run, own, HELD_OUT).labelled_ids == before
    drop(own, before[:1])
    told = "held_out.json is no list of 6 labelled images of train. Restore the data or name another split"
    with pytest.raises(InputError, match=told):
        unpredicted(run, own, HELD_OUT)
    assert not draw(own).exists()  # and none are drawn for it
    for damaged in ("", "3", "[[]]"):
        (run / "held_out.json").write_text(damaged)
        with pytest.raises(InputError, match="held_out.json is no list of 6 labelled images"):
            unpredicted(run, own, HELD_OUT)


def test_a_run_that_has_learned_nothing_yet_draws_anew(config, own, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(ConnectionError):
        patch.setattr(Run, "to_the_end", lambda *_: (_ for _ in ()).throw(ConnectionError))
        train(config)
    drop(own, hold_out(own, N, SEED)[:1])
    run = train(config)
    assert json.loads((run / "held_out.json").read_text()) == hold_out(own, N, SEED)

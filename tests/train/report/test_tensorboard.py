"""The files that a run writes for TensorBoard, read by TensorBoard itself."""

import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.projector.projector_plugin import ProjectorPlugin
from werkzeug.test import Client

from cache import console
from cache.strings import Strings
from tests import small_cache
from tests.trouble import fill_up
from train import run
from train.__main__ import main
from train.report import tensorboard


def quick(cache_dir, output_dir, **settings):
    """Settings of a short run."""
    values = {"solver": "sgd", "how_many_training_steps": 205, "learning_rate": 0.1, "train_batch_size": 20, **settings}
    return run.TrainSettings(cache_dir, output_dir, **values)


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
    return small_cache.make(tmp_path_factory.mktemp("small"), noise=90)


@pytest.fixture(scope="module")
def trained(cache_dir, tmp_path_factory):
    return run.train(quick(cache_dir, tmp_path_factory.mktemp("trained"), testing_percentage=30.0))


def events_in(folder):
    """TensorBoard's view of a folder of event files."""
    accumulator = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    return accumulator.Reload()


def tensors(folder, tag):
    """(step, array) of each event of that tag."""
    return [(event.step, tf.make_ndarray(event.tensor_proto)) for event in events_in(folder).Tensors(tag)]


def test_the_learning_curves_are_scalars(trained):
    steps = [*range(10, 201, 10), 205]
    for name in ("train", "validation"):
        folder = trained.settings.logs_dir / name
        assert set(events_in(folder).PluginTagToContent("scalars")) == {"accuracy", "cross_entropy"}
        for tag in ("accuracy", "cross_entropy"):
            events = tensors(folder, tag)
            assert [step for step, _ in events] == steps
            expected = [getattr(point, f"{name}_{tag}") for point in trained.curve]
            np.testing.assert_allclose([value for _, value in events], expected, rtol=1e-6)
            assert {value.shape for _, value in events} == {()}


def test_the_weights_are_histograms(trained):
    folder = trained.settings.logs_dir / "train"
    assert set(events_in(folder).PluginTagToContent("histograms")) == {"weights", "biases"}
    for tag, array in (("weights", trained.head.weights), ("biases", trained.head.biases)):
        events = tensors(folder, tag)
        assert len(events) == 20
        step, buckets = events[-1]
        assert step == 205
        assert buckets[:, 2].sum() == array.size
        assert buckets[0, 0] == array.min()
        assert buckets[-1, 1] == array.max()


def test_an_event_file_begins_with_its_version(trained):
    (path,) = (trained.settings.logs_dir / "validation").glob("events.out.tfevents.*")
    first = next(iter(tf.data.TFRecordDataset(str(path)))).numpy()
    assert tf.compat.v1.Event.FromString(first).file_version == "brain.Event:2"


def test_events_have_their_time_and_can_be_read_at_once(tmp_path):
    before = tf.timestamp().numpy()
    with tensorboard.writer(tmp_path) as writer:
        tensorboard.scalars(writer, 3, {"accuracy": 0.5})
        (event,) = events_in(tmp_path).Tensors("accuracy")  # the writer is still open
    assert event.step == 3
    assert before <= event.wall_time <= tf.timestamp().numpy()


def test_a_new_run_replaces_the_curves_of_the_last_one(cache_dir, tmp_path):
    settings = quick(cache_dir, tmp_path, summaries_dir=tmp_path / "curves", how_many_training_steps=20)
    run.train(settings)
    assert list((tmp_path / "curves" / "test").iterdir())
    (tmp_path / "curves" / "train" / "notes.txt").write_text("mine")
    run.fit(settings)
    assert [step for step, _ in tensors(tmp_path / "curves" / "train", "accuracy")] == [10, 20]
    assert (tmp_path / "curves" / "train" / "notes.txt").read_text() == "mine"
    run.train(quick(cache_dir, tmp_path, summaries_dir=tmp_path / "curves", testing_percentage=0.0))
    assert not list((tmp_path / "curves" / "test").iterdir()), "the events of the last run's test are still there"


def test_the_test_has_scalars_and_the_confusion_matrix_as_an_image(trained):
    folder = trained.settings.logs_dir / "test"
    ((step, accuracy),) = tensors(folder, "accuracy")
    assert step == 205
    assert accuracy == pytest.approx(trained.test.accuracy)
    events = events_in(folder)
    assert set(events.PluginTagToContent("images")) == {"confusion"}
    assert all(label in events.SummaryMetadata("confusion").summary_description for label in small_cache.LABELS)
    ((_, (width, height, png)),) = tensors(folder, "confusion")
    pixels = tf.io.decode_png(png).numpy()
    assert pixels.shape == (int(height), int(width), 3)
    side = pixels.shape[0] // 3
    shares = trained.test.confusion / trained.test.confusion.sum(axis=1, keepdims=True)
    assert 0 < np.trace(shares) < 3, "a test of the matrix needs mistakes"
    for truth in range(3):
        for predicted in range(3):
            cell = pixels[truth * side : (truth + 1) * side, predicted * side : (predicted + 1) * side].reshape(-1, 3)
            assert (cell == cell[0]).all()
            # The larger the share, the less there is of red on the diagonal, and of blue elsewhere.
            darkness = (255 - int(cell[0][0 if truth == predicted else 2])) / (255 - 37)
            assert darkness == pytest.approx(shares[truth, predicted], abs=0.01)


def test_the_confusion_matrix_of_many_classes_is_a_small_image():
    confusion = np.eye(1500, dtype=np.int64) * 9
    confusion[1499, 0] = 9
    pixels = tensorboard.matrix_image(confusion)
    assert pixels.shape[0] == pixels.shape[1] <= 700
    assert pixels[0, 0].tolist() == [37, 99, 201]
    assert pixels[1, 0].tolist() == [255, 255, 255]
    assert pixels[-1, 0, 2] < pixels[-1, 1, 2] == 255


@pytest.mark.parametrize("sample", [7, 2000])
@pytest.mark.parametrize("depth", [0, 1])
def test_the_projector_shows_bottlenecks_with_their_labels(cache_dir, tmp_path, monkeypatch, sample, depth):
    """Whether TensorBoard is pointed at the logs or at the folder above them."""
    monkeypatch.setattr(tensorboard, "SAMPLE", sample)
    result = run.train(quick(cache_dir, tmp_path / "out", how_many_training_steps=10))
    logdir = result.settings.logs_dir if depth == 0 else tmp_path / "out"
    runs = EventMultiplexer().AddRunsFromDirectory(str(logdir)).Reload()
    context = TBContext(logdir=str(logdir), multiplexer=runs, data_provider=MultiplexerDataProvider(runs, str(logdir)))
    routes = ProjectorPlugin(context).get_plugin_apps()

    def get(route, **query):
        answer = Client(routes[route]).get("/", query_string=query)
        assert answer.status_code == 200, answer.text
        return answer

    (name,) = get("/runs").json
    (embedding,) = get("/info", run=name).json["embeddings"]
    count = min(sample, 150)
    assert embedding["tensorShape"] == [count, small_cache.DIMENSION]
    content = get("/tensor", run=name, name=embedding["tensorName"]).data
    vectors = np.frombuffer(content, np.float32).reshape(count, -1)
    header, *lines = get("/metadata", run=name, name=embedding["tensorName"]).text.splitlines()
    assert header.split("\t") == ["label", "path"]
    labels, paths = zip(*(line.split("\t") for line in lines), strict=True)
    assert len(set(paths)) == count
    known = list(result.cache.paths)
    rows = np.array([known.index(path) for path in paths])
    assert list(labels) == [small_cache.LABELS[i] for i in result.cache.label_ids[rows]]
    np.testing.assert_allclose(vectors, result.cache.bottlenecks(rows), rtol=1e-3, atol=1e-6)


def test_tabs_and_line_ends_in_names_do_not_break_the_metadata(cache_dir, tmp_path):
    result = run.fit(quick(cache_dir, tmp_path, how_many_training_steps=10))
    paths = Strings.of([f"a\tb\nc\udcff{i}" for i in range(len(result.cache))])
    index = replace(result.cache.index, paths=paths)
    tensorboard.conclude(replace(result, cache=replace(result.cache, index=index)))
    lines = (tmp_path / "logs" / "train" / "metadata.tsv").read_text().splitlines()
    assert len(lines) == 1 + len(paths)
    assert lines[1] == f"{small_cache.LABELS[0]}\ta\\tb\\nc\N{REPLACEMENT CHARACTER}0"


# --- a full disk ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("has_room_for_curves", [True, False])
def test_a_full_disk_of_the_logs_costs_only_the_logs(cache_dir, tmp_path, disk, capsys, has_room_for_curves):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "logs").symlink_to(disk)
    flags = ["--cache_dir", str(cache_dir), "--output_dir", str(tmp_path / "out"), "--l2", "0.01"]
    assert console.run(main, flags) == 0
    events = [path for name in ("train", "validation") for path in (disk / name).glob("events*")]
    pages = sum(-(-path.stat().st_size // 4096) for path in events) if has_room_for_curves else 0
    for path in disk.iterdir():
        shutil.rmtree(path)
    before = (tmp_path / "out" / "latest").resolve()
    fill_up(disk)
    os.truncate(disk / "ballast", (disk / "ballast").stat().st_size - 4096 * pages)
    capsys.readouterr()

    assert console.run(main, flags) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines()[-1].startswith("Final test accuracy = ")
    *curves, last = printed.err.splitlines()
    assert last.startswith(f"warning: cannot write {tmp_path / 'out' / 'logs'}: ")
    assert "No space left on device; free some space or choose another folder, and run again" in last
    assert last.endswith("; TensorBoard lacks the test's figures")
    assert [line.endswith("; TensorBoard's curves end here") for line in curves] == [True] * (not pages)
    assert ("accuracy" in events_in(disk / "train").Tags()["tensors"]) == has_room_for_curves
    assert (tmp_path / "out" / "latest").resolve() != before
    for name in ("saved_model/saved_model.pb", "labels.txt", "metrics.json", "report.html"):
        assert (tmp_path / "out" / "latest" / name).stat().st_size > 0


def test_a_disk_that_fills_up_ends_the_curves_but_not_the_fit(cache_dir, tmp_path, disk, capsys):
    def fill(progress, fitting):
        if progress.step == 50:
            fill_up(disk)

    whole = run.fit(quick(cache_dir, tmp_path / "whole"))
    capsys.readouterr()
    # Many points, so that they fill more than the rest of the last page of the file.
    settings = quick(cache_dir, tmp_path / "out", summaries_dir=disk, eval_step_interval=1)
    result = run.fit(settings, fill)
    curves, last = capsys.readouterr().err.splitlines()
    assert curves.startswith(f"warning: cannot write {disk}: ")
    assert curves.endswith("; TensorBoard's curves end here")
    assert last.endswith("; TensorBoard lacks the test's figures")
    np.testing.assert_array_equal(result.head.weights, whole.head.weights)

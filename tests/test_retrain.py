"""The tutorial's command: what each of its flags does, and what else its users rely on."""

import datetime
import hashlib
import itertools
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import cache
import retrain
from cache import console, reader
from tests import forked, modules
from tests.pictures import make_folder, noise, pixels
from tests.processes import REPO
from train.export import tutorial

# The flags of the tutorial's script and their defaults (tensorflow/hub, examples/image_retraining).
TUTORIAL = {
    "image_dir": None,  # required
    "tfhub_module": None,  # Inception V3 where that can be reached
    "bottleneck_dir": "/tmp/bottleneck",
    "how_many_training_steps": 4000,
    "learning_rate": 0.01,
    "train_batch_size": 100,
    "testing_percentage": 10,
    "validation_percentage": 10,
    "validation_batch_size": 100,
    "test_batch_size": -1,
    "eval_step_interval": 10,
    "print_misclassified_test_images": False,
    "summaries_dir": Path("/tmp/retrain_logs"),
    "output_graph": Path("/tmp/output_graph.pb"),
    "output_labels": Path("/tmp/output_labels.txt"),
    "final_tensor_name": "final_result",
    "saved_model_dir": None,
    "intermediate_store_frequency": 0,
    "intermediate_output_graphs_dir": Path("/tmp/intermediate_graph/"),
    "checkpoint_path": Path("/tmp/_retrain_checkpoint"),
    "flip_left_right": False,
    "random_crop": 0,
    "random_scale": 0,
    "random_brightness": 0,
    "logging_verbosity": "INFO",
}
CHANGES = {
    "flip_left_right": (True, "flip"),
    "random_crop": (20, "crop 20%"),
    "random_scale": (30, "scale 30%"),
    "random_brightness": (40, "brightness 40%"),
}


@pytest.fixture(scope="module")
def job(tmp_path_factory, module):
    """The flags of a small job: two classes, of which one is dark on the left."""
    root = tmp_path_factory.mktemp("retrain")
    make_folder(root / "photos", {"Dark Things": 60, "light-things": 60})
    for path in (root / "photos" / "Dark Things").iterdir():
        picture = pixels(path).copy()
        picture[:, :8] //= 4
        Image.fromarray(picture).save(path)
    return {
        "image_dir": root / "photos",
        "tfhub_module": module,
        "bottleneck_dir": root / "bottleneck",
        "summaries_dir": root / "logs",
        "output_graph": root / "graph" / "output.pb",
        "output_labels": root / "labels" / "output.txt",
        "checkpoint_path": root / "checkpoint" / "layer",
        "intermediate_output_graphs_dir": root / "intermediate",
        "how_many_training_steps": 20,
        "learning_rate": 0.5,
    }


def line(flags, **more):
    return [f"--{name}={value}" if value is not True else f"--{name}" for name, value in {**flags, **more}.items()]


@pytest.fixture
def ask(job, capfd, loaded_once):
    """Runs the job with further flags.

    Returns what it printed (`out`, `err`); the lines of each step, without the step (`steps`); and the N of the final
    test (`tested`).
    """

    def run(**more):
        assert console.run(retrain.main, line(job, **more)) == 0, capfd.readouterr().err
        printed = capfd.readouterr()
        found = re.findall(r"Step (\d+): (.+ = .+)", printed.out)
        steps = {int(step): [] for step, _ in found}
        for step, text in found:
            steps[int(step)].append(text)
        last = re.search(r"\nFinal test accuracy = \d+\.\d% \(N=(\d+)\)\n$", printed.out)
        return SimpleNamespace(out=printed.out, err=printed.err, steps=steps, tested=last and int(last[1]))

    return run


def layer(path):
    """(weights, biases) of a checkpoint."""
    reader = tf.train.load_checkpoint(str(path))
    names = {name.split("/")[0]: name for name in reader.get_variable_to_shape_map()}
    return reader.get_tensor(names["weights"]), reader.get_tensor(names["biases"])


def answer(graph_file, images, name="final_result"):
    """The probabilities of the frozen graph, as the tutorial's scripts get them."""
    graph_def = tf.compat.v1.GraphDef.FromString(graph_file.read_bytes())
    with tf.Graph().as_default() as graph, tf.compat.v1.Session(graph=graph) as session:
        tf.import_graph_def(graph_def, name="")
        return session.run(f"{name}:0", {"Placeholder:0": images})


def photos(job):
    """float32 [N, h, w, 3] in [0, 1]: all images, sorted by path."""
    paths = sorted(job["image_dir"].rglob("*.png"))
    return np.stack([pixels(path) for path in paths]).astype(np.float32) / 255


def bucket(path):
    """From 0 to 100, by the tutorial's hash."""
    number = int(hashlib.sha1(re.sub("_nohash_.*$", "", path).encode()).hexdigest(), 16)
    return number % (1 << 27) * 100 / ((1 << 27) - 1)


def buckets(job):
    return np.array([bucket(str(path.relative_to(job["image_dir"]))) for path in job["image_dir"].rglob("*.png")])


def shards(folder):
    return {(path, path.stat().st_mtime_ns) for path in folder.rglob("*.h5")}


# --- the flags ------------------------------------------------------------------------------------------------


def test_the_flags_and_their_defaults_are_the_tutorials():
    flags = vars(retrain.parser().parse_args(["--image_dir", "photos"]))
    assert flags == {**TUTORIAL, "image_dir": "photos"}


def test_the_folders_are_the_classes_whatever_the_case_of_a_suffix(ask, tmp_path, capfd):
    names = ["a.jpg", "b.JPG", "c.jpeg", "d.JPEG", "e.png", "f.PNG", *(f"{i}.jpg" for i in range(20))]
    for number, name in enumerate(names):
        for folder in ("Wild__Roses-2", "tulips"):
            (tmp_path / "photos" / folder).mkdir(parents=True, exist_ok=True)
            form = "PNG" if name.lower().endswith("png") else "JPEG"
            Image.fromarray(noise(number)).save(tmp_path / "photos" / folder / name, form)
    flags = {"image_dir": tmp_path / "photos", "bottleneck_dir": tmp_path / "bottleneck"}
    ask(**flags, output_labels=tmp_path / "labels.txt")
    assert (tmp_path / "labels.txt").read_text() == "tulips\nwild roses 2\n"
    assert len(cache.open(tmp_path / "bottleneck")) == 2 * len(names)
    assert console.run(retrain.main, []) == 2
    assert "--image_dir" in capfd.readouterr().err


def test_a_folder_that_the_tutorials_label_would_fail_keeps_its_name(ask, tmp_path):
    flags = {"image_dir": make_folder(tmp_path / "photos", dict.fromkeys(["猫", "狗", "C++", "C#", "Wild-Dogs"], 5))}
    found = ask(**flags, bottleneck_dir=tmp_path / "bottleneck", output_labels=tmp_path / "labels.txt")
    assert (tmp_path / "labels.txt").read_text("utf-8") == "C#\nC++\nwild dogs\n狗\n猫\n"
    assert found.err.count("class folders 'C#' and 'C++' differ by case or punctuation alone") == 1


def test_the_plain_command_works_without_a_network(job, tmp_path, monkeypatch, capsys):
    """No --tfhub_module, and TensorFlow Hub out of reach: a warning, and the built-in network."""
    images = make_folder(tmp_path / "photos", {"a": 4, "b": 4})
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(tmp_path / "empty"))
    # Whatever this machine reaches, nothing answers at this address.
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    plain = {name: value for name, value in job.items() if name != "tfhub_module"}
    plain |= {"image_dir": images, "bottleneck_dir": tmp_path / "bottleneck"}
    assert console.run(retrain.main, line(plain)) == 0
    captured = capsys.readouterr()
    assert captured.err.startswith("warning: inception_v3 cannot be downloaded, so the built-in efficientnet_lite0")
    assert [path.name.split("-")[0] for path in (tmp_path / "bottleneck").iterdir()] == ["efficientnet_lite0"]
    assert console.run(retrain.main, line(plain, tfhub_module="inception_v3")) == 2
    assert "cannot be downloaded" in capsys.readouterr().err


def test_bottlenecks_are_made_once(ask, tmp_path):
    assert "photos/s" in ask(bottleneck_dir=tmp_path).out
    before = shards(tmp_path)
    assert before
    assert "photos/s" not in ask(bottleneck_dir=tmp_path).out
    assert shards(tmp_path) == before


def test_every_interval_and_the_last_step_print_the_tutorials_lines(ask):
    found = ask(how_many_training_steps=45, eval_step_interval=20)
    assert list(found.steps) == [20, 40, 45]
    for train, loss, validation in found.steps.values():
        assert re.fullmatch(r"Train accuracy = \d+\.\d%", train)
        assert re.fullmatch(r"Cross entropy = \d+\.\d{6}", loss)
        assert re.fullmatch(r"Validation accuracy = \d+\.\d% \(N=100\)", validation)
    for text in found.out.splitlines():
        if " Step " in text:
            datetime.datetime.fromisoformat(text.split(": Step ")[0])
    assert list(ask(how_many_training_steps=300).steps) == list(range(10, 301, 10))


def test_one_step_goes_as_far_as_the_rate_says_from_the_tutorials_start(ask, job):
    first, second = (
        (ask(how_many_training_steps=1, learning_rate=rate), layer(job["checkpoint_path"]))[1] for rate in (0.1, 0.2)
    )
    start = [2 * one - two for one, two in zip(first, second, strict=True)]
    np.testing.assert_allclose(start[1], 0, atol=1e-7)
    assert np.abs(first[1]).max() > 1e-5
    assert np.abs(start[0]).max() < 0.002
    assert 0.0003 < start[0].std() < 0.0015


def test_the_batch_is_as_large_as_it_is_asked_to_be(ask):
    found = ask(train_batch_size=3, learning_rate=1e-9, how_many_training_steps=400)
    shares = {steps[0].split(" = ")[1] for steps in found.steps.values()}
    assert shares <= {"0.0%", "33.3%", "66.7%", "100.0%"}
    assert shares >= {"33.3%", "66.7%"}


@pytest.mark.parametrize(("testing", "validation"), [(10, 10), (35, 20)])
def test_the_stable_hash_splits(ask, job, testing, validation):
    found = ask(testing_percentage=testing, validation_percentage=validation, validation_batch_size=-1)
    at = buckets(job)
    held = np.count_nonzero(at < validation), np.count_nonzero((at >= validation) & (at < validation + testing))
    assert found.tested == held[1] > 0
    assert found.steps[20][2].endswith(f" (N={held[0]})")
    assert f"{len(at) - sum(held)} train, {held[0]} validate, {held[1]} test; split by hash" in found.out


def test_folders_above_the_classes_split(ask, tmp_path):
    counts = {f"seg_{part}/seg_{part}/{name}": count for part, count in (("train", 30), ("test", 8)) for name in "ab"}
    images = make_folder(tmp_path / "photos", {**counts, "seg_pred/seg_pred": 3})
    flags = {"image_dir": images, "bottleneck_dir": tmp_path / "bottleneck", "output_labels": tmp_path / "labels.txt"}
    found = ask(**flags, validation_percentage=0)
    assert (tmp_path / "labels.txt").read_text() == "a\nb\n"
    assert "2 classes, 76 photos: 60 train, 0 validate, 16 test; split by folders\n" in found.out
    assert found.tested == 16
    assert "left out, since no class folder holds the photos: 'seg pred seg pred' (3)" in found.err


def test_a_part_may_be_empty(ask):
    found = ask(testing_percentage=0, validation_percentage=0)
    assert [text.split(" = ")[0] for text in found.steps[20]] == ["Train accuracy", "Cross entropy"]
    assert "warning: no photo fell into the validation set" in found.err
    assert found.out.splitlines()[-1].startswith("Final test accuracy is unknown")


def test_so_many_images_validate_and_test(ask):
    found = ask(validation_batch_size=7, test_batch_size=5, testing_percentage=40)
    assert {steps[2].split("(")[1] for steps in found.steps.values()} == {"N=7)"}
    assert found.tested == 5


def test_mistakes_are_printed_with_their_paths(ask, job):
    flags = {"testing_percentage": 60, "learning_rate": 1e-9}  # the random start takes nearly all for one class
    found = ask(**flags, print_misclassified_test_images=True)
    labels = dict(zip(sorted(job["image_dir"].rglob("*.png")), answer(job["output_graph"], photos(job)), strict=True))
    names = ["dark things", "light things"]
    expected = {
        (str(path), names[scores.argmax()])
        for path, scores in labels.items()
        if 10 <= bucket(str(path.relative_to(job["image_dir"]))) < 70
        and names[scores.argmax()] != path.parent.name.lower().replace("-", " ")
    }
    assert expected
    lines = found.out.split("Misclassified test images:\n")[1].splitlines()
    assert {tuple(text.split("  ")) for text in lines if text.startswith("/")} == expected
    assert len([text for text in lines if text.startswith("/")]) == len(expected)
    assert "Misclassified" not in ask(**flags).out


def test_tensorboard_finds_what_was_printed(ask, tmp_path):
    found = ask(summaries_dir=tmp_path)
    for name, place in (("train", 0), ("validation", 2)):
        (file,) = (tmp_path / name).glob("events.out.tfevents.*")
        accuracies = {
            event.step: float(tf.make_ndarray(value.tensor))
            for event in tf.compat.v1.train.summary_iterator(str(file))
            for value in event.summary.value
            if value.tag == "accuracy"
        }
        assert accuracies
        assert {step: f"{value:.1%}" for step, value in accuracies.items()} == {
            step: texts[place].split(" = ")[1].split(" ")[0] for step, texts in found.steps.items()
        }


def test_what_a_real_run_leaves_gives_the_same_probabilities(job, tmp_path):
    more = {"final_tensor_name": "answer", "saved_model_dir": tmp_path / "saved"}
    more |= {"how_many_training_steps": 200, "testing_percentage": 30}
    status, out, errors = forked.run("retrain", *line(job, **more))
    assert status == 0, errors.decode()
    last = out.decode().splitlines()[-1]
    assert float(re.fullmatch(r"Final test accuracy = (\d+\.\d)% \(N=\d+\)", last)[1]) >= 90
    assert job["output_labels"].read_text() == "dark things\nlight things\n"
    images = photos(job)
    frozen = answer(job["output_graph"], images, "answer")
    served = tf.saved_model.load(str(more["saved_model_dir"])).signatures["serving_default"]
    prediction = served(image=tf.constant(images))["prediction"].numpy()
    np.testing.assert_allclose(prediction, frozen, atol=1e-6)
    weights, biases = layer(job["checkpoint_path"])
    scores = modules.reference(images) @ weights + biases
    np.testing.assert_allclose(prediction, np.exp(scores) / np.exp(scores).sum(1, keepdims=True), atol=1e-5)
    assert (prediction.argmax(1) == np.repeat([0, 1], 60)).mean() > 0.9


def test_only_a_saved_model_is_replaced(ask, job, tmp_path, capfd, monkeypatch):
    ask(saved_model_dir=tmp_path / "saved")
    before = (tmp_path / "saved" / "saved_model.pb").stat().st_ino
    ask(saved_model_dir=tmp_path / "saved", how_many_training_steps=10)
    assert (tmp_path / "saved" / "saved_model.pb").stat().st_ino != before
    (tmp_path / "saved" / "thesis.txt").write_text("ten years of work")
    assert console.run(retrain.main, line(job, saved_model_dir=tmp_path / "saved")) == 2
    assert capfd.readouterr().err == (
        f"error: --saved_model_dir {tmp_path / 'saved'} is there, and is no SavedModel to replace; name a new folder\n"
    )
    assert (tmp_path / "saved" / "thesis.txt").exists()
    monkeypatch.chdir(tmp_path)  # what would be replaced by mistake
    ask(saved_model_dir="")  # the tutorial's way to say none
    assert list(tmp_path.iterdir()) == [tmp_path / "saved"]


def test_an_intermediate_graph_is_that_of_a_run_that_ends_there(ask, job, monkeypatch):
    folder, images = job["intermediate_output_graphs_dir"], photos(job)
    freeze, frozen = tutorial.convert_variables_to_constants_v2, []
    counted = lambda *arguments, **options: frozen.append(arguments) or freeze(*arguments, **options)  # noqa: E731
    monkeypatch.setattr(tutorial, "convert_variables_to_constants_v2", counted)
    ask(how_many_training_steps=70)
    assert not folder.exists()
    names = {"final_tensor_name": "answer"}
    frozen.clear()
    ask(how_many_training_steps=70, intermediate_store_frequency=20, eval_step_interval=30, **names)
    assert len(frozen) == 1, "the backbone is frozen once for all graphs"
    assert {path.name for path in folder.iterdir()} == {f"intermediate_{step}.pb" for step in (20, 40, 60)}
    scores = [answer(folder / f"intermediate_{step}.pb", images, "answer") for step in (20, 40, 60)]
    scores.append(answer(job["output_graph"], images, "answer"))
    for step, found in zip((20, 40, 60, 70), scores, strict=True):
        ask(how_many_training_steps=step)
        np.testing.assert_allclose(found, answer(job["output_graph"], images), atol=1e-6)
    assert all(np.abs(one - two).max() > 1e-3 for one, two in itertools.pairwise(scores))


def test_what_is_written_is_on_disk_before_it_has_its_name(ask, job, tmp_path, monkeypatch):
    flushed, fsync = set(), os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: flushed.add(os.fstat(file).st_ino) or fsync(file))
    places = [tmp_path / "graph.pb", tmp_path / "labels.txt", tmp_path / "layer", tmp_path / "saved"]
    names = ("output_graph", "output_labels", "checkpoint_path", "saved_model_dir")
    left = [tmp_path / f".{path.name}.0123abcd.tmp" for path in places]
    for path in left:
        path.write_text("what a killed run left")
        os.utime(path, (0, 0))
    ask(**dict(zip(names, places, strict=True)))
    assert not any(path.exists() for path in left)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    found = {path.name for path in written}
    assert {"graph.pb", "labels.txt", "layer.index", "layer.data-00000-of-00001", "saved_model.pb"} < found
    assert {path.stat().st_ino for path in [*written, tmp_path, tmp_path / "saved"]} <= flushed


def test_augmentations_are_cached_and_train_if_a_flag_asks_for_them(ask, job, tmp_path, monkeypatch):
    images = make_folder(tmp_path / "photos", {"a": 12, "b": 12})

    def head(**flags):
        out = ask(image_dir=images, bottleneck_dir=tmp_path / "bottleneck", **flags).out
        train = int(re.search(r"(\d+) train", out)[1])
        assert (f"{retrain.AUGMENT * train} augmentations of the training photos train, too" in out) == bool(flags)
        return np.concatenate([part.ravel() for part in layer(job["checkpoint_path"])]).tobytes()

    def descriptions():
        found = reader.augmentations(cache.open(tmp_path / "bottleneck"))
        assert {len(augmentation) for augmentation in found} <= {24}
        return [augmentation.backbone.preprocessing.split("; ")[1] for augmentation in found]

    monkeypatch.setattr(retrain, "AUGMENT", 1)  # for each change alone
    plain = head()
    assert descriptions() == []
    heads = {plain}
    for name, (value, words) in CHANGES.items():
        heads.add(first := head(**{name: value}))
        assert descriptions() == [f"{words} (1), seed 0, version 1"]
        before = shards(tmp_path / "bottleneck")
        assert head(**{name: value}) == first
        assert shards(tmp_path / "bottleneck") == before
    assert head() == plain
    assert shards(tmp_path / "bottleneck") == before
    # The draws are the same: only other bottlenecks make other heads.
    assert len(heads) == 1 + len(CHANGES)
    monkeypatch.undo()
    head(**{name: value for name, (value, _) in CHANGES.items()})
    every = ", ".join(words for _, words in CHANGES.values())
    assert descriptions() == [f"{every} (1), seed 0, version {number}" for number in range(1, 6)]


def test_less_and_less_is_printed(ask, tmp_path, capfd):
    images = make_folder(tmp_path / "photos", {"a": 15, "b": 25})
    (images / "a" / "broken.jpg").write_bytes(b"no image")
    (images / "loose.jpg").write_bytes(b"in no class")
    (images / "cleared").mkdir()

    def printed_at(level):
        return ask(image_dir=images, bottleneck_dir=tmp_path / level, logging_verbosity=level)

    for level in ("DEBUG", "INFO"):
        found = printed_at(level)
        assert list(found.steps) == [10, 20]
        assert "extract: 100%" in found.err
    warn = printed_at("WARN")
    assert warn.out == ""
    loose, empty, broken, *others = warn.err.splitlines()
    assert loose == f"warning: 1 files lie in {images} itself, in no class folder: left out"
    assert empty == f"warning: class folders without photos are left out: 1, such as {images / 'cleared'}"
    assert broken.startswith("warning: left out, as broken or no images: 1; see ")
    assert Path(broken.split("; see ")[1]).read_text().splitlines()[1].startswith("a/broken.jpg,")
    assert "warning: fewer than 20 photos, expect poor results: 'a' (15)" in others
    assert all(text.startswith("warning: ") for text in others)
    for level in ("ERROR", "FATAL"):
        found = printed_at(level)
        assert (found.out, found.err) == ("", "")
        assert console.run(retrain.main, ["--image_dir=/nowhere", f"--logging_verbosity={level}"]) == 2
        assert capfd.readouterr().err.startswith("error: image_dir /nowhere is not a folder")


def test_it_runs_as_a_script():
    command = [sys.executable, "retrain.py", "--image_dir", "/nowhere"]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: image_dir /nowhere is not a folder")


# --- what goes wrong ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_interrupted_says_how_to_go_on(job, kind):
    child = forked.start("retrain", *line(job, how_many_training_steps=10**7))
    assert any(b": Step 10: " in text for text in iter(child.stdout.readline, b""))
    child.send_signal(kind)
    status, _, errors = child.communicate()
    assert status == 130
    (directory,) = job["bottleneck_dir"].iterdir()
    assert errors.decode().splitlines()[-1] == (
        f"interrupted; the bottlenecks are kept in {directory}, and the same command trains anew on them"
    )
    assert b"Traceback" not in errors


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"testing_percentage": 60, "validation_percentage": 50}, "percentage"),
        ({"random_crop": 101}, "--random_crop: '101' is not a whole number from 0 to 100"),
        ({"train_batch_size": 0}, "--train_batch_size"),
        ({"output_graph": "README.md/output.pb"}, "cannot write README.md"),
        ({"output_labels": "tests"}, "--output_labels tests is a folder; name a file in it"),
        ({"checkpoint_path": ""}, "--checkpoint_path: an empty path"),
        ({"bottleneck_dir": ""}, "--bottleneck_dir: an empty path"),
        ({"image_dir": ""}, "--image_dir: an empty path"),
        ({"summaries_dir": ""}, "--summaries_dir: an empty path"),
        ({"output_graph": ""}, "--output_graph: an empty path"),
        ({"output_labels": ""}, "--output_labels: an empty path"),
        ({"intermediate_output_graphs_dir": ""}, "--intermediate_output_graphs_dir: an empty path"),
        ({"intermediate_store_frequency": 5, "intermediate_output_graphs_dir": "README.md"}, "cannot write README.md"),
        ({"final_tensor_name": "Placeholder"}, "--final_tensor_name: 'Placeholder' is another tensor of the graph"),
        ({"image_dir": "/nowhere"}, "/nowhere is not a folder"),
        ({"final_tensor_name": "no name"}, "--final_tensor_name: 'no name' is no tensor name"),
    ],
)
def test_bad_input_gets_one_line(job, capsys, monkeypatch, more, message):
    monkeypatch.chdir(REPO)
    assert console.run(retrain.main, line(job, **more)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "wrong",
    [{"image_dir": "/nowhere"}, {"output_labels": REPO}, {"checkpoint_path": REPO}, {"saved_model_dir": REPO}],
    ids=str,
)
def test_what_was_mistyped_leaves_no_folders_behind(job, tmp_path, wrong):
    names = ("summaries_dir", "output_graph", "output_labels", "checkpoint_path", "intermediate_output_graphs_dir")
    places = {name: tmp_path / name / "below" / "it" for name in (*names, "saved_model_dir", "bottleneck_dir")}
    assert console.run(retrain.main, line(job, **{**places, "intermediate_store_frequency": 5, **wrong})) == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("folders", "message"),
    [([], "has no subfolder with photos"), (["one"], "only one class")],
)
def test_fewer_than_two_classes_end_the_run(job, tmp_path, capsys, folders, message):
    images = make_folder(tmp_path / "photos", dict.fromkeys(folders, 3))
    images.mkdir(exist_ok=True)
    assert console.run(retrain.main, line(job, image_dir=images, bottleneck_dir=tmp_path / "bottleneck")) == 2
    assert message in capsys.readouterr().err
    assert not os.path.exists(tmp_path / "bottleneck")

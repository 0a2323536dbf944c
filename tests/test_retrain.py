"""The tutorial's command, flag by flag."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import cache
import retrain
from cache import command
from cache.reader import distorted
from tests import modules
from tests.pictures import make_folder, pixels

REPO = Path(__file__).resolve().parent.parent

# The flags of the tutorial's script and their defaults (tensorflow/hub, examples/image_retraining).
TUTORIAL = {
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
    "summaries_dir": "/tmp/retrain_logs",
    "output_graph": "/tmp/output_graph.pb",
    "output_labels": "/tmp/output_labels.txt",
    "final_tensor_name": "final_result",
    "saved_model_dir": None,
    "intermediate_store_frequency": 0,
    "intermediate_output_graphs_dir": "/tmp/intermediate_graph/",
    "checkpoint_path": "/tmp/_retrain_checkpoint",
    "flip_left_right": False,
    "random_crop": 0,
    "random_scale": 0,
    "random_brightness": 0,
    "logging_verbosity": "INFO",
}


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """(folder, flags) of a small job: two classes that a random network tells apart by their brightness."""
    root = tmp_path_factory.mktemp("retrain")
    make_folder(root / "photos", {"Dark Things": 40, "light-things": 40})
    from PIL import Image

    for path in (root / "photos" / "Dark Things").iterdir():
        Image.fromarray(pixels(path) // 4).save(path)
    module = modules.make_tf2_hub_module(root / "module")
    flags = {
        "image_dir": root / "photos",
        "tfhub_module": module,
        "bottleneck_dir": root / "bottleneck",
        "summaries_dir": root / "logs",
        "output_graph": root / "graph" / "output.pb",
        "output_labels": root / "labels" / "output.txt",
        "saved_model_dir": root / "saved",
        "checkpoint_path": root / "checkpoint" / "layer",
        "how_many_training_steps": 200,
        "learning_rate": 0.5,
    }
    return root, flags


def line(flags, **more):
    return [f"--{name}={value}" if value is not True else f"--{name}" for name, value in {**flags, **more}.items()]


@pytest.fixture(scope="module")
def done(job):
    """The job's result, from a real process."""
    root, flags = job
    command_line = [sys.executable, "retrain.py", *line(flags, final_tensor_name="answer")]
    finished = subprocess.run(command_line, cwd=REPO, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    return root, flags, finished.stdout


def test_every_flag_of_the_tutorial_is_there_with_its_default():
    flags = vars(retrain.parser().parse_args(["--image_dir", "photos"]))
    assert {name: str(flags[name]) for name in TUTORIAL} == {
        name: str(float(value) if name.endswith("percentage") else value) for name, value in TUTORIAL.items()
    }
    assert set(flags) - set(TUTORIAL) == {"image_dir", "tfhub_module"}


def test_it_ends_with_the_tutorials_line(done):
    _, _, output = done
    last = output.splitlines()[-1]
    assert last.startswith("Final test accuracy = ")
    assert float(last.split("= ")[1].split("%")[0]) >= 90


def test_what_it_leaves_gives_the_same_probabilities(done):
    root, flags, _ = done
    assert flags["output_labels"].read_text() == "dark things\nlight things\n"
    photos = [root / "photos" / "Dark Things" / "000.png", root / "photos" / "light-things" / "000.png"]
    images = np.stack([pixels(photo) for photo in photos]).astype(np.float32) / 255
    graph_def = tf.compat.v1.GraphDef.FromString(flags["output_graph"].read_bytes())
    with tf.Graph().as_default() as graph, tf.compat.v1.Session(graph=graph) as session:
        tf.import_graph_def(graph_def, name="")
        frozen = session.run("answer:0", {"Placeholder:0": images})
    served = tf.saved_model.load(str(flags["saved_model_dir"])).signatures["serving_default"]
    prediction = served(image=tf.constant(images))["prediction"].numpy()
    np.testing.assert_allclose(prediction, frozen, atol=1e-6)
    reader = tf.train.load_checkpoint(str(flags["checkpoint_path"]))
    names = [name for name in reader.get_variable_to_shape_map() if name.startswith(("weights", "biases"))]
    layer = {name.split("/")[0]: reader.get_tensor(name) for name in names}
    scores = modules.reference(images) @ layer["weights"] + layer["biases"]
    expected = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    np.testing.assert_allclose(prediction, expected, atol=1e-5)
    assert prediction.argmax(1).tolist() == [0, 1]


def test_a_second_run_reuses_the_bottlenecks(done, capsys):
    _, flags, _ = done
    shards = sorted(flags["bottleneck_dir"].rglob("*.h5"))
    assert command.run(retrain.main, line(flags, how_many_training_steps=20)) == 0
    assert sorted(flags["bottleneck_dir"].rglob("*.h5")) == shards


def test_distortions_are_cached(done):
    _, flags, _ = done
    steps = {"how_many_training_steps": 20}
    distortions = {"flip_left_right": True, "random_crop": 10, "random_scale": 20, "random_brightness": 30}
    assert command.run(retrain.main, line(flags, **steps, **distortions)) == 0
    versions = distorted(cache.open(flags["bottleneck_dir"]))
    assert [version.module.preprocessing.split("; ")[1] for version in versions] == [
        f"flip, crop 10%, scale 20%, brightness 30% (1), seed 0, version {number}" for number in range(1, 6)
    ]
    assert [len(version) for version in versions] == [80] * 5
    before = sorted(flags["bottleneck_dir"].rglob("*.h5"))
    assert command.run(retrain.main, line(flags, **steps, **distortions)) == 0
    assert sorted(flags["bottleneck_dir"].rglob("*.h5")) == before
    assert command.run(retrain.main, line(flags, **steps, random_brightness=40)) == 0
    assert [
        version.module.preprocessing.split("; ")[1] for version in distorted(cache.open(flags["bottleneck_dir"]))
    ] == [f"brightness 40% (1), seed 0, version {number}" for number in range(1, 6)]


def test_quiet_is_quiet(done, capfd):
    _, flags, _ = done
    assert command.run(retrain.main, line(flags, how_many_training_steps=20, logging_verbosity="ERROR")) == 0
    assert capfd.readouterr().out == ""


def test_the_tutorials_plain_command_works_without_a_network(job, tmp_path, monkeypatch, capsys):
    """No --tfhub_module, and TensorFlow Hub out of reach: a warning, and the built-in network."""
    _, flags = job
    photos = make_folder(tmp_path / "photos", {"a": 15, "b": 15})
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(tmp_path / "empty"))
    # Whatever this machine reaches, nothing answers at this address.
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    plain = {name: value for name, value in flags.items() if name != "tfhub_module"}
    plain |= {"image_dir": photos, "bottleneck_dir": tmp_path / "bottleneck", "how_many_training_steps": 20}
    assert command.run(retrain.main, line(plain)) == 0
    captured = capsys.readouterr()
    assert "warning: inception_v3 cannot be downloaded, so the built-in efficientnet_lite0" in captured.err
    assert [path.name.split("-")[0] for path in (tmp_path / "bottleneck").iterdir()] == ["efficientnet_lite0"]
    assert command.run(retrain.main, line(plain, tfhub_module="inception_v3")) == 2
    assert "cannot be downloaded" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"testing_percentage": 60, "validation_percentage": 50}, "percentage"),
        ({"random_crop": 101}, "--random_crop: '101' is not a whole number from 0 to 100"),
        ({"train_batch_size": 0}, "--train_batch_size"),
        ({"output_graph": "README.md/output.pb"}, "cannot write README.md"),
        ({"final_tensor_name": "Placeholder"}, "--final_tensor_name: 'Placeholder' is taken in the graph"),
        ({"image_dir": "/nowhere"}, "/nowhere is not a folder"),
        ({"final_tensor_name": "no name"}, "--final_tensor_name: 'no name' is no tensor name"),
    ],
)
def test_bad_input_gets_one_line(job, capsys, more, message):
    _, flags = job
    assert command.run(retrain.main, line(flags, **more)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1

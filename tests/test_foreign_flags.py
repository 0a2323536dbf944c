"""Flags of the tutorial's older scripts, of make_image_classifier, and of the other commands: what to write instead."""

import pytest

import retrain
from cache import console, foreign_flags
from extract.__main__ import main as extract
from extract.__main__ import parser as extract_parser
from train import predict
from train.__main__ import main as train
from train.__main__ import parser as train_parser

COMMANDS = {"extract": extract, "train": train, "predict": predict.main, "retrain": retrain.main}
NEEDED = {"extract": ["--image_dir", "photos"], "retrain": ["--image_dir", "photos"]}
MOBILENET = "https://tfhub.dev/google/imagenet/mobilenet_v1_050_224/feature_vector/5"


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        ("retrain", "--architecture mobilenet_0.50_224", f"mobilenet_0.50_224 is {MOBILENET}"),
        ("retrain", "--architecture=mobilenet_0.50_224", f"mobilenet_0.50_224 is {MOBILENET}"),
        ("extract", "--architecture mobilenet_1.0_128_quantized", "mobilenet_v1_100_128/feature_vector/5"),
        ("extract", "--architecture inception_v3", "inception_v3 is inception_v3"),
        ("extract", "--architecture resnet", "--module NAME` names the network, and so does"),
        ("retrain", "--model_dir X", "TFHUB_CACHE_DIR"),
        ("retrain", "--flip_left_right True", "--flip_left_right takes no value: give it alone, without True"),
        ("retrain", "--flip_left_right=true", "--flip_left_right takes no value: give it alone, without true"),
        ("extract", "--flip_left_right False", "--flip_left_right takes no value: leave it out, without False"),
        ("extract", "--noflip_left_right", "--noflip_left_right is no flag; leave out --flip_left_right"),
        ("train", "--image_dir photos", "`python -m extract --image_dir` reads the photos"),
        ("train", "--train_epochs 5 --do_fine_tuning", "the network itself is never trained"),
        ("train", "--tflite_output_file x.tflite", "--tflite float16"),
        ("train", "--labels_output_file x.txt", "labels.txt"),
        ("extract", "--output_graph x.pb", "--frozen_graph"),
        ("predict", "--graph=x.pb --labels=y.txt --image z.jpg", "python -m train.predict --model retrained photo.jpg"),
    ],
)
def test_a_foreign_flag_is_answered_with_what_to_write_instead(command, arguments, message, capsys):
    assert console.run(COMMANDS[command], [*NEEDED.get(command, []), *arguments.split()]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line


def test_a_switch_before_something_else_is_as_before(capsys):
    assert console.run(extract, ["--image_dir", "nowhere", "--thumbnails"]) == 2
    assert "nowhere is not a folder" in capsys.readouterr().err


def test_every_flag_that_is_advised_is_there():
    there = set(train_parser()._option_string_actions) | set(extract_parser()._option_string_actions)
    there |= set(retrain.parser()._option_string_actions) | set(predict.parser()._option_string_actions)
    for line in foreign_flags.ADVICE.values():
        flags = [word.strip("`;,.") for word in line.replace("=", " ").split() if word.strip("`").startswith("--")]
        assert set(flags) <= there, line

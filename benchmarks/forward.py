"""The network alone, on images in memory: ours beside OpenVINO's own benchmark, and beside TensorFlow's other ways."""

from __future__ import annotations

import functools
import itertools
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import tensorflow as tf

from benchmarks import measure, networks
from benchmarks.measure import Contender, Options, Result
from benchmarks.networks import Network
from cache.errors import UserError
from extract import devices, engines
from extract.engines import Engine

OPENVINO_BATCH, TENSORFLOW_BATCH, XLA_BATCH = 8, 32, 8
PRECISIONS = ("float32", "mixed")
KERAS = "Keras, float32"


def openvino(options: Options) -> Iterator[Result]:
    """Our engine beside benchmark_app, the tool that OpenVINO's makers measure with, on the same model file.

    And beside Keras's network: what an extraction gains by it, apart from what Keras spends on reading photos.
    """
    names = devices.choose("auto")
    if engines.choose("auto", names) != "openvino":
        return
    for network in networks.both(options.scratch):
        with devices.running_in("auto", names) as precision:
            engine = engines.openvino(network.backbone, precision, OPENVINO_BATCH)
        model = _model_file(network, options.scratch)
        figures = measure.turns(
            {
                "ours": throughput(network, engine, 1, options.seconds),
                "benchmark_app": functools.partial(_benchmark_app, model, precision, options.seconds),
                "Keras": _keras(network, options.seconds),
            },
            options.repeats,
        )
        for reference, name, target in (("benchmark_app", "benchmark_app", 0.9), ("Keras", KERAS, None)):
            yield Result("forward", network.name, "images/s", figures["ours"], name, figures[reference], target)


def tensorflow(options: Options) -> Iterator[Result]:
    """What each step bought: variables made constants, half precision; and what XLA, which we left out, would give."""
    names = devices.choose("auto")
    for network in networks.both(options.scratch):
        images = networks.random_images(network, TENSORFLOW_BATCH)
        xla = tf.function(
            lambda x, features=network.backbone.features: features(tf.cast(x, tf.float32) / 255), jit_compile=True
        )
        contenders: dict[str, Contender] = {"Keras": _keras(network, options.seconds)}
        for precision in PRECISIONS:
            contenders[precision] = _in(precision, names, network, options.seconds)
        contenders["XLA"] = _calls(xla, images[:XLA_BATCH], options.seconds)
        figures = measure.turns(contenders, options.repeats)
        kept = figures[max(PRECISIONS, key=lambda precision: sum(figures[precision]))]
        for case, ours, reference in (
            ("frozen float32", figures["float32"], "Keras"),
            ("frozen mixed", figures["mixed"], "Keras"),
            ("frozen mixed", figures["mixed"], "float32"),
            ("the faster of both", kept, "XLA"),
        ):
            reference_name = {"Keras": KERAS, "float32": "frozen float32", "XLA": "frozen, XLA"}[reference]
            yield Result("forward", f"{network.name}, {case}", "images/s", ours, reference_name, figures[reference])


CASES = (openvino, tensorflow)


def throughput(network: Network, engine: Engine, replicas: int, seconds: float) -> Contender:
    """The engine's images a second, its batches one behind the other as in an extraction."""
    images = networks.random_images(network, engine.batch_size * replicas)

    def figure() -> float:
        began = time.perf_counter()
        # Fed by the clock: the same number of batches would be nothing for one engine and minutes for another.
        feed = itertools.takewhile(lambda _: time.perf_counter() - began < seconds, itertools.repeat((None, images)))
        done = sum(len(vectors) for _, vectors in engines.run(engine, feed))
        return done / (time.perf_counter() - began)

    return figure


def _in(precision: str, names: list[str], network: Network, seconds: float) -> Contender:
    engine = engines.tensorflow(network.backbone, names, TENSORFLOW_BATCH)
    run = throughput(network, engine, len(names), seconds)

    def figure() -> float:
        with devices.running_in(precision, names):
            return run()

    return figure


def _keras(network: Network, seconds: float) -> Contender:
    model = tf.function(lambda images: network.model(tf.cast(images, tf.float32), training=False))
    return _calls(model, networks.random_images(network, TENSORFLOW_BATCH), seconds)


def _calls(function: Callable[[tf.Tensor], tf.Tensor], images: tf.Tensor, seconds: float) -> Contender:
    return measure.rate_for(seconds, len(images), lambda: function(images).numpy())


def _model_file(network: Network, scratch: Path) -> Path:
    """The very model that our engine compiles, as a file."""
    import openvino as ov

    path = scratch / f"{network.name}.xml"
    model = engines.openvino_model(ov.Core(), network.backbone, OPENVINO_BATCH)
    ov.save_model(model, path, compress_to_fp16=False)
    return path


def _benchmark_app(model: Path, precision: str, seconds: float) -> float:
    program = Path(sys.executable).with_name("benchmark_app")
    kind = "f32" if precision == "float32" else "bf16"
    flags = ["-d", "CPU", "-hint", "throughput", "-infer_precision", kind, "-t", str(max(1, round(seconds)))]
    try:
        done = subprocess.run([program, "-m", model, *flags], capture_output=True, text=True)
    except OSError as error:
        raise UserError(f"cannot run {program}: {error.strerror}; pip install --force-reinstall openvino") from None
    found = re.search(r"Throughput:\s*([\d.]+) FPS", done.stdout)
    if done.returncode or not found:
        last = (done.stderr or done.stdout).strip().splitlines() or ["no output"]
        raise UserError(f"benchmark_app failed ({last[-1].strip()}); leave the suite out with --suite")
    return float(found[1])

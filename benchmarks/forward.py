"""The backbone alone, on images in memory: our engines beside OpenVINO's benchmark_app, Keras and XLA."""

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
from cache.errors import UserError, first_line
from extract import engines
from extract.engines import Engine, devices
from extract.engines.engine import of_pixels

SUITE = "forward"
OPENVINO_BATCH, TENSORFLOW_BATCH, XLA_BATCH = 8, 32, 8
PRECISIONS = ("float32", "mixed")
KERAS = "Keras, float32"


def openvino(options: Options) -> Iterator[Result]:
    """The engine `openvino` beside benchmark_app, OpenVINO's own tool for measuring, which runs the same model.

    Also beside the Keras model: that is what an extraction gains by the engine, without what Keras spends on reading
    photos.
    """
    names = devices.choose("auto")
    if engines.choose("auto", names) != "openvino":
        return
    for network in networks.both(options.scratch):
        with devices.running_in("auto", names) as precision:
            engine = engines.build("openvino", network.backbone, names, precision=precision, batch_size=OPENVINO_BATCH)
        images = networks.random_images(network, OPENVINO_BATCH)
        model = _model_file(network, options.scratch)
        figures = measure.turns(
            {
                "ours": throughput(engine, images, options.seconds),
                "benchmark_app": functools.partial(_benchmark_app, model, precision, options.seconds),
                "Keras": _keras(network, options.seconds),
            },
            options.repeats,
        )
        for reference, name, target in (("benchmark_app", "benchmark_app", 0.9), ("Keras", KERAS, None)):
            yield Result(SUITE, network.name, "images/s", figures["ours"], name, figures[reference], target=target)


def tensorflow(options: Options) -> Iterator[Result]:
    """The engine `tensorflow`: what the frozen graph gains, what half precision gains, and why XLA is not used."""
    names = devices.choose("auto")
    for network in networks.both(options.scratch):
        images = networks.random_images(network, TENSORFLOW_BATCH)
        xla = tf.function(of_pixels(network.backbone), jit_compile=True)
        contenders: dict[str, Contender] = {"Keras": _keras(network, options.seconds)}
        for precision in PRECISIONS:
            contenders[precision] = _frozen(precision, names, network, options.seconds)
        contenders["XLA"] = _calls(xla, images[:XLA_BATCH], options.seconds)
        figures = measure.turns(contenders, options.repeats)
        faster = figures[max(PRECISIONS, key=lambda precision: sum(figures[precision]))]
        for case, ours, reference_name, reference in (
            ("frozen float32", figures["float32"], KERAS, figures["Keras"]),
            ("frozen mixed", figures["mixed"], KERAS, figures["Keras"]),
            ("frozen mixed", figures["mixed"], "frozen float32", figures["float32"]),
            ("the faster of both", faster, "frozen, XLA", figures["XLA"]),
        ):
            yield Result(SUITE, f"{network.name}, {case}", "images/s", ours, reference_name, reference)


CASES = (openvino, tensorflow)


def throughput(engine: Engine, images: tf.Tensor, seconds: float) -> Contender:
    """Its figure is the images/s of an engine that gets the batch `images` again and again, as fast as it takes it."""

    def figure() -> float:
        began = time.perf_counter()
        # The clock ends a turn: the same number of batches would take no time for one engine and minutes for another.
        feed = itertools.takewhile(lambda _: time.perf_counter() - began < seconds, itertools.repeat((None, images)))
        done = sum(len(vectors) for _, vectors in engines.run(engine, feed))
        return done / (time.perf_counter() - began)

    return figure


def _frozen(precision: str, names: list[str], network: Network, seconds: float) -> Contender:
    """The engine `tensorflow`, which runs the frozen graph, in that precision."""
    engine = engines.build("tensorflow", network.backbone, names, precision=precision, batch_size=TENSORFLOW_BATCH)
    images = networks.random_images(network, engine.batch_size * len(names))
    run = throughput(engine, images, seconds)

    def figure() -> float:
        with devices.running_in(precision, names):
            return run()

    return figure


def _keras(network: Network, seconds: float) -> Contender:
    """The Keras model in a `tf.function`, in float32."""
    model = tf.function(lambda images: network.model(tf.cast(images, tf.float32), training=False))
    return _calls(model, networks.random_images(network, TENSORFLOW_BATCH), seconds)


def _calls(function: Callable[[tf.Tensor], tf.Tensor], images: tf.Tensor, seconds: float) -> Contender:
    return measure.rate_for(seconds, len(images), lambda: function(images).numpy())


def _model_file(network: Network, scratch: Path) -> Path:
    """The model that our engine compiles, saved as a file."""
    import openvino as ov

    from extract.engines.openvino import convert

    path = scratch / f"{network.name}.xml"
    model = convert(ov.Core(), network.backbone, OPENVINO_BATCH)
    ov.save_model(model, path, compress_to_fp16=False)
    return path


def _benchmark_app(model: Path, precision: str, seconds: float) -> float:
    """The images/s that benchmark_app prints. Raises UserError if it fails."""
    program = Path(sys.executable).with_name("benchmark_app")
    kind = "f32" if precision == "float32" else "bf16"
    flags = ["-d", "CPU", "-hint", "throughput", "-infer_precision", kind, "-t", str(max(1, round(seconds)))]
    try:
        done = subprocess.run([program, "-m", model, *flags], capture_output=True, text=True)
    except OSError as error:
        raise UserError(f"cannot run {program}: {first_line(error)}; pip install --force-reinstall openvino") from None
    throughput_line = re.search(r"Throughput:\s*([\d.]+) FPS", done.stdout)
    if done.returncode or not throughput_line:
        output = (done.stderr or done.stdout).strip().splitlines() or ["no output"]
        raise UserError(f"benchmark_app failed ({output[-1].strip()}); choose other suites with --suite")
    return float(throughput_line[1])

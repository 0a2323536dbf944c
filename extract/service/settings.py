"""What the service is asked to do: the flags of `python -m extract.serve`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cache import console
from cache.console import flag
from cache.errors import UserError
from extract.settings import Settings

_EXTRACTION = {field: Settings.__dataclass_fields__[field].metadata["flag"]["help"] for field in ("engine", "devices")}


@dataclass(frozen=True)
class ServeSettings:
    """What the service is asked to do."""

    cache_dir: Path = flag(
        "where the backbone is kept, and the photos' bottlenecks and thumbnails that answers may show; made if it is "
        "not there",
        default=Path("bottlenecks"),
        type=console.to_path,
    )
    head: Sequence[Path] | None = flag(
        "classifiers to answer with: what `python -m train` wrote, its --output_dir, each under its folder's name; "
        "reloaded when a training replaces one (default: none, bottlenecks only)",
        default=None,
        type=console.to_path,
        nargs="+",
        metavar="DIR",
    )
    module: str | None = flag(
        "the network, as `python -m extract --module` takes it (default: the one of the cache, or efficientnet_lite0)",
        default=None,
    )
    host: str = flag("address to listen on; 0.0.0.0 stands for all of this machine", default="127.0.0.1")
    port: int = flag("port to listen on; 0: any free one", default=8501, type=console.port)
    token_file: Path | None = flag(
        "a file whose first line clients must send, as `Authorization: Bearer TOKEN` (default: no token)",
        default=None,
        type=console.to_path,
    )
    allow_host: Sequence[str] | None = flag(
        "further names under which clients reach this service, as in the Host header; localhost, this machine's name "
        "and addresses by number always work",
        default=None,
        nargs="+",
        metavar="NAME",
    )
    cors_origin: Sequence[str] | None = flag(
        "pages of these origins, such as https://example.org, may ask from a browser (default: only its own page)",
        default=None,
        nargs="+",
        metavar="ORIGIN",
    )
    corrections: Path | None = flag(
        "a folder of class folders that takes the photos which users of the page correct (default: none are taken)",
        default=None,
        type=console.to_path,
        metavar="DIR",
    )
    access_log: bool = flag("print a line of JSON for each request", default=False)
    deadline_seconds: float = flag(
        "from a request's arrival to its answer, at most", default=30.0, type=console.positive_float
    )
    drain_seconds: float = flag(
        "for what was accepted before SIGTERM to be answered, at most", default=20.0, type=console.positive_float
    )
    max_request_mb: int = flag("megabytes of a request's body", default=64, type=console.positive)
    max_images: int = flag("images in a request", default=256, type=console.positive)
    max_image_mb: int = flag("megabytes of one image file", default=32, type=console.positive)
    max_megapixels: int = flag(
        "millions of pixels of an image, of all frames of a GIF together", default=64, type=console.positive
    )
    max_waiting: int = flag(
        "images that may wait or be in work; requests beyond get 429", default=1024, type=console.positive
    )
    max_waiting_mb: int = flag(
        "megabytes of bodies that may be in memory; requests beyond get 429", default=512, type=console.positive
    )
    batch_size: int | None = flag(
        "images at once on each device, at most (default: as for `python -m extract`)",
        default=None,
        type=console.positive,
    )
    precision: str = flag(
        "as for `python -m extract`; bottlenecks compare best with those made in the same one",
        default="auto",
        choices=("auto", "float32", "mixed"),
    )
    engine: str = flag(_EXTRACTION["engine"], default="auto", choices=("auto", "tensorflow", "openvino"))
    devices: str = flag(_EXTRACTION["devices"], default="auto")
    decode_threads: int | None = flag(
        "threads that decode photos (default: one for each core)", default=None, type=console.threads
    )

    def check(self) -> None:
        """Raises UserError for limits that contradict each other."""
        if self.max_images > self.max_waiting:
            raise UserError(
                f"--max_images {self.max_images} is above --max_waiting {self.max_waiting}: a request that large would "
                "never be accepted; raise --max_waiting"
            )
        if self.max_request_mb > self.max_waiting_mb:
            raise UserError(
                f"--max_request_mb {self.max_request_mb} is above --max_waiting_mb {self.max_waiting_mb}: a request "
                "that large would never be accepted; raise --max_waiting_mb"
            )

    def extraction(self, module: str, image_size: tuple[int, int] | None) -> Settings:
        """The settings of an extraction with the same network, engine and devices."""
        return Settings(
            image_dir="",
            cache_dir=str(self.cache_dir),
            module=module,
            image_size=image_size,
            batch_size=self.batch_size,
            precision=self.precision,
            engine=self.engine,
            devices=self.devices,
            decode_threads=self.decode_threads,
        )

"""`python -m extract.serve`: photos in over HTTP, bottlenecks or labels out."""

from __future__ import annotations

import importlib.util
import sys
import warnings

from cache import console
from cache.console import print
from cache.errors import UserError
from extract.service.settings import ServeSettings

DESCRIPTION = """Answers over HTTP: an image in, its bottleneck or its most likely labels out. One network runs for any
number of heads, and images of all requests go through it together. /v1 lists the heads, /openapi.json describes the
protocols (its own, TensorFlow Serving's, Open Inference and OpenAI's embeddings), and / is a page to try them."""
_NEEDED = ("starlette", "uvicorn", "httptools", "python_multipart", "prometheus_client")


def parser() -> console.Parser:
    flags = console.Parser(prog="python -m extract.serve", description=DESCRIPTION)
    console.add_flags(flags, ServeSettings)
    return flags


def main(arguments: list[str] | None = None) -> None:
    settings = ServeSettings(**vars(parser().parse_args(arguments)))
    for name in _NEEDED:
        if importlib.util.find_spec(name) is None:
            raise UserError(
                f"the service needs {name}, which is not installed: pip install 'bottleneck-retrain[serve]'"
            )
    warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
    from extract.service.run import serve

    serve(settings)


def script() -> int:
    """The command `retrain-serve`."""
    return console.run(main, is_job=True)


if __name__ == "__main__":
    sys.exit(script())

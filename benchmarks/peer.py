"""A plain service around an exported classifier, as a tutorial would have it: each request runs the whole SavedModel.

It is on Starlette, which FastAPI is built on. Its handler goes to a pool of threads, as FastAPI sends plain functions
there. FastAPI itself would add the validation of what it is sent, which a body of raw bytes hardly has.
"""

from __future__ import annotations

import socket
import sys

import tensorflow as tf
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route


def _main() -> None:
    classify = tf.saved_model.load(sys.argv[1]).signatures["serving_default"]

    def predict(content: bytes) -> list[float]:
        return classify(image_bytes=tf.constant([content]))["probabilities"].numpy()[0].tolist()

    async def answer(request: Request) -> JSONResponse:
        return JSONResponse({"probabilities": await run_in_threadpool(predict, await request.body())})

    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listening:
        print(f"open http://localhost:{listening.getsockname()[1]}/", flush=True)
        app = Starlette(routes=[Route("/predict", answer, methods=["POST"])])
        uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False)).run([listening])


if __name__ == "__main__":
    _main()

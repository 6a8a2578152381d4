"""The HTTP layer: FastAPI over a `Service`; it knows nothing about networks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Annotated, Any

from fastapi import FastAPI, File, Form, HTTPException, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from fastapi_offline import FastAPIOffline
from pydantic import BaseModel, Field

import vitune
from vitune.data import quiet_pillow
from vitune.errors import AdapterError, DataError, VituneError
from vitune.serving.batching import BusyError, StoppedError
from vitune.serving.collection import UnknownAdapterError
from vitune.serving.engine import Answer, Upload
from vitune.serving.gate import Guard
from vitune.serving.monitoring import Measured, Metrics
from vitune.serving.service import Service
from vitune.serving.settings import GuardSettings

PAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; img-src blob: data:; connect-src 'self'; "
    "style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
DESCRIPTION = "Image classification with many adapters over one vision backbone."
STATUS = ((UnknownAdapterError, 404), (BusyError, 503), (StoppedError, 503), (DataError, 422))
"""HTTP status of each error, most specific first; any other vitune error is 400."""


class ClassProbability(BaseModel):
    """A class and its probability, in [0, 1]."""

    name: str
    probability: float


class ImageResult(BaseModel):
    """How one image was processed."""

    file: str
    batch_size: int = Field(description="number of images that ran together")
    merged: bool = Field(description="whether the adapter's weights were merged")
    waited_ms: float = Field(description="time in the queue")
    ran_ms: float = Field(description="time of the batch")


class Predicted(ImageResult):
    """The most probable classes of one image, most probable first."""

    top: list[ClassProbability]


class Embedded(ImageResult):
    """The classifier's input features for one image."""

    embedding: list[float]


class Response(BaseModel):
    """Which adapter answered and how long it took."""

    adapter: str
    fingerprint: str = Field(description="hash of the adapter's files when it ran")
    time_ms: float = Field(description="from receiving the whole body to the answer")


class Predictions(Response):
    """One prediction per image, in order."""

    predictions: list[Predicted]


class Embeddings(Response):
    """One embedding per image, in order."""

    embeddings: list[Embedded]


class Refusal(BaseModel):
    """Why there is no answer."""

    detail: str


AdapterName = Annotated[str, Form(description="name of an adapter, as /v1/adapters lists them")]
Images = Annotated[list[UploadFile], File(description="one image file or several")]


def create_app(service: Service, settings: GuardSettings | None = None) -> Any:
    """The application over `service`, which it closes on shutdown; guards outermost.

    Needs `vitune[serve]`.
    """
    limits = settings or GuardSettings()
    metrics = Metrics(service)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        with quiet_pillow():
            yield
            await asyncio.to_thread(service.close)

    app = FastAPIOffline(
        redoc_url=None,
        static_url="/docs-files",
        title="vitune serve",
        version=vitune.__version__,
        description=DESCRIPTION,
        lifespan=lifespan,
        responses={"default": {"model": Refusal, "description": "An error, in a sentence."}},
    )
    app.add_exception_handler(VituneError, _told)
    app.add_exception_handler(RequestValidationError, _unfit)

    async def answers(name: str, images: Sequence[UploadFile]) -> tuple[float, list[Answer]]:
        started = time.perf_counter()
        if len(images) > limits.max_images:
            text = f"images: got {len(images)}, expected at most {limits.max_images} per request."
            raise HTTPException(413, text)
        uploads = [Upload(_name(one, n), await one.read()) for n, one in enumerate(images)]
        try:
            async with asyncio.timeout(limits.answer_timeout_s):
                found = await service.predict(name, uploads)
        except TimeoutError:
            text = f"answer: got none within {limits.answer_timeout_s:g} s. Try again later."
            raise HTTPException(504, text) from None
        return 1000 * (time.perf_counter() - started), found

    @app.post("/v1/predict")
    async def predict(
        adapter: AdapterName,
        images: Images,
        top_k: Annotated[int, Form(ge=1, le=1000, description="classes per image")] = 5,
    ) -> Predictions:
        """Classify images with one adapter."""
        time_ms, found = await answers(adapter, images)
        return Predictions(
            **_whose(found, time_ms),
            predictions=[
                Predicted(**_ran(one, images[n], n), top=_top(one, top_k))
                for n, one in enumerate(found)
            ],
        )

    @app.post("/v1/embed")
    async def embed(adapter: AdapterName, images: Images) -> Embeddings:
        """Compute the features that enter an adapter's classifier."""
        time_ms, found = await answers(adapter, images)
        return Embeddings(
            **_whose(found, time_ms),
            embeddings=[
                Embedded(**_ran(one, images[n], n), embedding=one.features.tolist())
                for n, one in enumerate(found)
            ],
        )

    @app.get("/v1/adapters")
    async def adapters() -> dict[str, Any]:
        """List the adapters that are served, and those that were refused with the reason."""
        return await service.listing()

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Check whether the server answers."""
        return {"status": "ok", "version": vitune.__version__}

    @app.get("/metrics", response_class=PlainTextResponse)
    async def prometheus() -> PlainTextResponse:
        """Metrics in Prometheus' text format."""
        return PlainTextResponse(await metrics.text(), media_type=metrics.media_type)

    @app.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(_page(), headers=PAGE_HEADERS)

    return Measured(Guard(app, limits), metrics)


def _page() -> str:
    return (files("vitune.serving") / "page.html").read_text(encoding="utf-8")


async def _told(_: Request, error: Exception) -> JSONResponse:
    """A client error as one sentence."""
    default = 500 if isinstance(error, AdapterError) else 400
    status = next((code for kind, code in STATUS if isinstance(error, kind)), default)
    headers = {"retry-after": "1"} if status == 503 else {}
    return JSONResponse({"detail": str(error)}, status, headers)


async def _unfit(_: Request, error: Exception) -> JSONResponse:
    """The first field that does not fit, as one sentence."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    field = next((str(step) for step in first["loc"][1:]), "body")
    is_no_file = field == "images" and first["type"] == "value_error"
    what = "expected image files, each with a filename" if is_no_file else first["msg"]
    return JSONResponse({"detail": f"{field}: {what}."}, 422)


def _name(upload: UploadFile, index: int) -> str:
    return (upload.filename or f"image {index + 1}")[:200]


def _whose(found: Sequence[Answer], time_ms: float) -> dict[str, Any]:
    return {
        "adapter": found[0].adapter,
        "fingerprint": found[0].fingerprint,
        "time_ms": round(time_ms, 2),
    }


def _ran(answer: Answer, upload: UploadFile, index: int) -> dict[str, Any]:
    return {
        "file": _name(upload, index),
        "batch_size": answer.batch_size,
        "merged": answer.merged,
        "waited_ms": round(answer.waited_ms, 2),
        "ran_ms": round(answer.ran_ms, 2),
    }


def _top(answer: Answer, top_k: int) -> list[ClassProbability]:
    values, indices = answer.logits.double().softmax(-1).topk(min(top_k, len(answer.classes)))
    pairs = zip(indices.tolist(), values.tolist(), strict=True)
    return [ClassProbability(name=answer.classes[i], probability=value) for i, value in pairs]

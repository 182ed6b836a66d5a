"""The application: what can be asked of a server, and what it says."""

import asyncio
import html
import json
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, JSONResponse, Response

from abmll.errors import AbmllError, NonFiniteError
from abmll.files import strict_json
from abmll.process.environment import version
from abmll.question import Question
from abmll.serving.engine import Busy, Closed, Engine
from abmll.serving.limits import App, Guard, Limits, refusal
from abmll.serving.metrics import CONTENT_TYPE, Metrics
from abmll.showing.bars import BASE, PROMPT, of_questions
from abmll.showing.page import render
from abmll.showing.tasks import Promise, ServedTask
from abmll.systems.predict import Answer

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}

DOCS = (
    "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content=width=device-width>"
    "<title>abmll serve</title><style>:root{{color-scheme:light dark}}pre{{overflow:auto}}"
    "body{{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}}</style>"
    "<body>{}</body></html>"
)


class ClassifyRequest(BaseModel):
    """Rows to answer: texts by `input`, as vLLM's /classify takes them, or `rows` with the columns of the task."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = Field(None, description="Name of the task; not needed where there is one.")
    input: str | list[str] | None = Field(None, description="A text, or several, where the task has labels.")
    rows: list[dict[str, Any]] | None = Field(None, description="Rows, as a file for `abmll predict` has them.")
    abstain_below_risk: float | None = Field(
        None, description="Share of wrong answers that is allowed; default: the server's."
    )


class BarsRequest(BaseModel):
    """One row, for the page."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = Field(None, description="Name of the task; not needed where there is one.")
    row: dict[str, Any]


class ClassifiedRow(BaseModel):
    """What is said of one row."""

    index: int
    label: str = Field(description="The most probable choice, answered or not.")
    probs: list[float] = Field(description="Of the choices, in the order of the task's labels or of the row's choices.")
    num_classes: int
    prediction: str | None = Field(description="The label; null where the row is not answered.")
    confidence: float
    answered: bool | None = Field(description="Whether the promise covers it; null where nothing is promised.")
    set: list[str] | None = Field(description="Choices that hold the right one but for the risk; null likewise.")
    spread: float | None = Field(description="Standard deviation of the confidence over posterior draws.")
    information: float | None = Field(description="How much the draws disagree, nats.")


class Usage(BaseModel):
    """How much was answered."""

    rows: int


class ClassifyResponse(BaseModel):
    """The answers, in the order of the rows."""

    id: str
    object: str = "list"
    created: int
    model: str
    labels: list[str] | None
    promise: dict[str, Any] | None
    data: list[ClassifiedRow]
    usage: Usage


@dataclass(frozen=True)
class Served:
    """What an application answers with.

    Attributes:
        engine: started.
        tasks: by name.
        limits: what is let in.
        metrics: what is counted.
        risk: share of wrong answers that is promised where a request does not say; None: nothing is.
        token: that requests must bear; None: none.
        hosts: names that requests may be for; None: any.
        pages: task -> what the page at `/` says of it; none: there is no page.
    """

    engine: Engine
    tasks: Mapping[str, ServedTask]
    limits: Limits
    metrics: Metrics
    risk: float | None = None
    token: str | None = field(default=None, repr=False)
    hosts: tuple[str, ...] | None = None
    pages: Mapping[str, Any] = field(default_factory=dict)

    def task(self, name: str | None) -> ServedTask:
        """The task that a request names.

        Raises:
            HTTPException: there is none of that name, or there are several and none is named.
        """
        if name is None and len(self.tasks) == 1:
            return next(iter(self.tasks.values()))
        if name is None or name not in self.tasks:
            known = ", ".join(self.tasks)
            raise HTTPException(404, f"model: the name of a task is needed, one of {known}")
        return self.tasks[name]

    async def stated(self, speaker: str, questions: Sequence[Question]) -> tuple[Answer, ...]:
        """Answers as the model states them.

        Raises:
            HTTPException: the rows do not fit, are too many or take too long; or the server stops.
        """
        if len(questions) > self.limits.rows:
            raise HTTPException(413, f"{len(questions):,} rows; at most {self.limits.rows:,} at a time")
        try:
            async with asyncio.timeout(self.limits.seconds):
                return await asyncio.wrap_future(self.engine.submit(speaker, questions))
        except Busy as busy:
            raise HTTPException(503, str(busy), {"Retry-After": f"{busy.seconds:.0f}"}) from None
        except Closed as closed:
            raise HTTPException(503, str(closed)) from None
        except TimeoutError:
            raise HTTPException(504, f"not answered after {self.limits.seconds:g} s") from None
        except NonFiniteError:
            raise HTTPException(500, "an answer is NaN or infinite, which is none") from None
        except AbmllError as error:
            raise HTTPException(422, str(error)) from None


async def read_json(request: Request, shape: type[BaseModel]) -> Any:
    """The body of a request.

    Raises:
        HTTPException: it is no JSON, or not of this shape; no text of the client's is repeated.
    """
    try:
        value = strict_json(await request.body())
    except ValueError as error:  # UnicodeDecodeError is one
        what = f": {error}" if type(error) is ValueError else ""
        raise HTTPException(400, f"the body is no JSON{what}") from None
    try:
        return shape.model_validate(value)
    except ValidationError as error:
        found = [f"{'.'.join(map(str, e['loc']))[:80] or 'the body'}: {e['msg']}" for e in error.errors()[:10]]
        raise HTTPException(422, "; ".join(found)) from None


def _body(shape: type[BaseModel]) -> dict[str, Any]:
    schema = shape.model_json_schema()
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def build_app(served: Served) -> App:
    """The application, within its limits: POST /v1/classify, GET /v1/models, /health, /metrics, /docs, /openapi.json.

    Args:
        served: what it answers with.
    """
    app = FastAPI(
        title="abmll",
        description="Saved tasks of one run: probabilities, confidence, and what is promised of the answers.",
        version=version("abmll") or "not installed",
        docs_url=None,  # FastAPI's own page fetches its scripts from elsewhere
        redoc_url=None,
    )
    _count_requests(app, served.metrics)
    app.add_exception_handler(HTTPException, _refused)

    @app.post("/v1/classify", response_model=ClassifyResponse, openapi_extra=_body(ClassifyRequest))
    async def classify(request: Request) -> Response:
        """Answer rows by a saved task."""
        asked: ClassifyRequest = await read_json(request, ClassifyRequest)
        task = served.task(asked.model)
        questions = _questions(task, asked, served.limits.rows)
        promise = _promise(task, served.risk if asked.abstain_below_risk is None else asked.abstain_below_risk)
        answers = task.scaled(await served.stated(task.name, questions))
        data = task.shown(questions, answers, promise)
        served.metrics.answered(task.name, len(data), sum(row["answered"] is False for row in data))
        return JSONResponse(_response(task, promise, data))

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The saved tasks, with their labels and columns."""
        data = [{**task.about(), "promise": _said(task, served.risk)} for task in served.tasks.values()]
        return {"object": "list", "data": data}

    @app.get("/health")
    async def health() -> Response:
        """200 while requests are answered, 503 while the server stops."""
        alive = served.engine.alive
        return JSONResponse({"status": "ok" if alive else "stopping"}, 200 if alive else 503)

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Counters, for Prometheus."""
        return Response(served.metrics.text(), media_type=CONTENT_TYPE)

    @app.get("/docs", response_class=HTMLResponse, include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(_docs(app.openapi()), headers=HEADERS)

    if served.pages:
        _add_page(app, served)
    return Guard(app, served.limits, served.token, served.hosts)


def _add_page(app: FastAPI, served: Served) -> None:
    """The page at `/`, which holds no data, and what it asks for."""
    text = render({"live": True, "tasks": []})

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def shown() -> Response:
        return HTMLResponse(text, headers=HEADERS)

    @app.get("/v1/page")
    async def page() -> dict[str, Any]:
        """What the page says of the tasks."""
        return {"tasks": list(served.pages.values())}

    @app.post("/v1/bars", openapi_extra=_body(BarsRequest))
    async def bars(request: Request) -> dict[str, Any]:
        """What the base, the base with examples in its prompt, and the task say of one row."""
        asked: BarsRequest = await read_json(request, BarsRequest)
        task = served.task(asked.model)
        try:
            questions = task.questions([asked.row])
        except AbmllError as error:
            raise HTTPException(422, str(error)) from None
        names = [task.name, task.name + BASE]
        names += [task.name + PROMPT] if served.pages[task.name]["in_prompt"] else []
        stated = {name: await served.stated(name, questions) for name in names}
        return of_questions(task, questions, stated)[0]


def _questions(task: ServedTask, asked: ClassifyRequest, most: int) -> list[Question]:
    if (asked.input is None) == (asked.rows is None):
        raise HTTPException(422, "either input (a text, or several) or rows is needed")
    texts = [asked.input] if isinstance(asked.input, str) else asked.input
    count = len(asked.rows if texts is None else texts)  # type: ignore[arg-type]
    if not 1 <= count <= most:
        raise HTTPException(413 if count else 422, f"{count:,} rows; 1 to {most:,} are taken at a time")
    try:
        return task.questions(asked.rows or []) if texts is None else task.texts(texts)
    except AbmllError as error:
        raise HTTPException(422, str(error)) from None


def _promise(task: ServedTask, risk: float | None) -> Promise | None:
    try:
        return None if risk is None else task.promise(risk)
    except AbmllError as error:
        raise HTTPException(422, str(error)) from None


def _said(task: ServedTask, risk: float | None) -> dict[str, Any] | None:
    promise = _promise(task, risk)
    return None if promise is None else promise.to_json()


def _response(task: ServedTask, promise: Promise | None, data: list[Any]) -> dict[str, Any]:
    labels = task.layout.labels
    return {
        "id": f"classify-{secrets.token_hex(12)}",
        "object": "list",
        "created": int(time.time()),
        "model": task.name,
        "labels": None if labels is None else list(labels),
        "promise": None if promise is None else promise.to_json(),
        "data": data,
        "usage": {"rows": len(data)},
    }


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    refused = refusal(error.status_code, str(error.detail))
    refused.headers.update(error.headers or {})
    return refused


def _count_requests(app: FastAPI, metrics: Metrics) -> None:
    """Count requests by the routes that there are: a path that a client makes up is none."""

    @app.middleware("http")
    async def counted(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        began, status = time.perf_counter(), 500
        try:
            response = await answer(request)
            status = response.status_code
            return response
        finally:
            route = getattr(request.scope.get("route"), "path", "other")
            metrics.request(route, status, time.perf_counter() - began)


def _docs(schema: Mapping[str, Any]) -> str:
    """The OpenAPI description as a page that fetches nothing."""
    parts = ["<h1>abmll serve</h1><p>The same for programs: <a href=openapi.json>openapi.json</a></p>"]
    for path, methods in schema["paths"].items():
        for method, what in methods.items():
            about = html.escape(what.get("description", ""))
            parts.append(f"<h2>{method.upper()} {html.escape(path)}</h2><p>{about}</p>")
            body = what.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
            parts += [] if body is None else ["<h3>Request</h3>", _as_text(body)]
    shapes = schema.get("components", {}).get("schemas", {})
    parts += [f"<h3>{html.escape(name)}</h3>{_as_text(shape)}" for name, shape in shapes.items()]
    return DOCS.format("".join(parts))


def _as_text(value: Any) -> str:
    return f"<pre>{html.escape(json.dumps(value, indent=1))}</pre>"

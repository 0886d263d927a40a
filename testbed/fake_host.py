"""ComfyUI's HTTP API without ComfyUI, for the tests of the demo: python fake_host.py PORT [deaf]."""

from __future__ import annotations

import json
import signal
import sys

from aiohttp import web

routes = web.RouteTableDef()
sockets: list[web.WebSocketResponse] = []


@routes.get("/ws")
async def listen(request: web.Request) -> web.WebSocketResponse:
    sockets.append(web.WebSocketResponse())
    await sockets[-1].prepare(request)
    async for _ in sockets[-1]:
        pass
    return sockets[-1]


@routes.post("/prompt")
async def queue(request: web.Request) -> web.Response:
    graph = (await request.json())["prompt"]
    if not graph:
        return web.json_response({"error": "empty"}, status=400)
    await say("execution_cached", nodes=["0"])
    await say("executing", node="1")
    if "fail" in graph:
        await say("execution_error", node_type="KSampler", exception_message="too hot", traceback=["line 1"])
    for step in (1, 2):
        await say("progress", value=step, max=2)
    await sockets[-1].send_bytes(b"preview")
    await say("executing", node="2")
    await say("executing", node=None)
    return web.json_response({"prompt_id": "7"})


@routes.get("/history/7")
async def history(request: web.Request) -> web.Response:
    return web.json_response({"7": {"outputs": {"2": {"images": [{"filename": "a.png", "type": "temp"}]}}}})


@routes.get("/view")
async def view(request: web.Request) -> web.Response:
    return web.Response(body=request.query["filename"].encode())


@routes.get("/system_stats")
async def stats(request: web.Request) -> web.Response:
    return web.json_response({})


async def say(kind: str, **data: object) -> None:
    await sockets[-1].send_str(json.dumps({"type": kind, "data": {"prompt_id": "7", **data}}))


if __name__ == "__main__":
    print("fake host listens", flush=True)
    app = web.Application()
    app.add_routes(routes)
    deaf = "deaf" in sys.argv  # to SIGINT and SIGTERM
    for number in (signal.SIGINT, signal.SIGTERM) if deaf else ():
        signal.signal(number, signal.SIG_IGN)
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None, handle_signals=not deaf)

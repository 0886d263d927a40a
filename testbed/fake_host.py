"""ComfyUI's HTTP API without ComfyUI, for the tests of the demo: python fake_host.py PORT [deaf] [hangs].

It draws plain pictures for the preview and save nodes of a graph. deaf: to signals; hangs: in the second graph, in mid-sampling.
"""

from __future__ import annotations

import asyncio
import io
import json
import signal
import sys
import zlib

from aiohttp import web
from PIL import Image

SIDE = 128  # px of its pictures

routes = web.RouteTableDef()
sockets: list[web.WebSocketResponse] = []
graphs: list[dict] = []


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
    graphs.append(graph)
    await say("execution_cached", nodes=["0"])
    await say("executing", node="1")
    if "fail" in graph:
        await say("execution_error", node_type="KSampler", exception_message="too hot", traceback=["line 1"])
    for step in (1, 2):
        await say("progress", value=step, max=2)
        if "hangs" in sys.argv and len(graphs) == 2:
            await asyncio.sleep(3600)
    await sockets[-1].send_bytes(b"preview")
    await say("executing", node="2")
    await say("executing", node=None)
    return web.json_response({"prompt_id": "7"})


@routes.get("/history/7")
async def history(request: web.Request) -> web.Response:
    graph = graphs[-1]
    shown = {key: pictures_of(graph, node) for key, node in graph.items() if node.get("class_type") in ("PreviewImage", "SaveImage")}
    names = {key: [f"{key}-{number}.png" for number in range(count)] for key, count in shown.items()} or {"2": ["a.png"]}
    outputs = {key: {"images": [{"filename": name, "type": "temp"} for name in files]} for key, files in names.items()}
    return web.json_response({"7": {"outputs": outputs}})


def pictures_of(graph: dict, node: dict) -> int:
    """As many as the batch, if they come from a sampler."""
    source = graph[node["inputs"]["images"][0]]["class_type"]
    batches = [each["inputs"]["batch_size"] for each in graph.values() if each["class_type"] == "EmptyLatentImage"]
    return batches[0] if source == "VAEDecode" else 1


@routes.get("/view")
async def view(request: web.Request) -> web.Response:
    name = request.query["filename"]
    if name == "a.png":
        return web.Response(body=name.encode())
    content, colour = io.BytesIO(), zlib.crc32(name.encode())
    Image.new("RGB", (SIDE, SIDE), (colour & 255, colour >> 8 & 255, colour >> 16 & 255)).save(content, "PNG")
    return web.Response(body=content.getvalue())


@routes.get("/object_info")
async def offered(request: web.Request) -> web.Response:
    return web.json_response({"KSampler": {}, "KBDMLoadMini": {}})


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

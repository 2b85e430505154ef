"""Serve OpenAI-compatible answers after a log-normal time, for benchmarks/rationales.py; print the port.

    python benchmarks/latency_server.py 0.5            (mean seconds per answer)

One process with asyncio streams and as little HTTP as clients need, so that the benchmark measures the client and not
the server. A GET returns the seconds from the first request to the last answer, counted since the last GET.
"""

import asyncio
import json
import math
import random
import sys
import time

MEAN = float(sys.argv[1])
SIGMA = 0.5
CHANCE = random.Random(0)
ANSWER = {
    "id": "1", "object": "chat.completion", "created": 0, "model": "m",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "because " * 60}}],
    "usage": {"prompt_tokens": 60, "completion_tokens": 60, "total_tokens": 120},
}  # fmt: skip
BODY = json.dumps(ANSWER).encode()
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
TIMES: dict[str, float] = {}


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            if head.startswith(b"GET"):
                took = str(TIMES.pop("last") - TIMES.pop("first")).encode()
                writer.write(HEAD % len(took) + took)
                continue
            TIMES.setdefault("first", time.monotonic())
            length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            await reader.readexactly(int(length.split(b":")[1]))
            await asyncio.sleep(CHANCE.lognormvariate(math.log(MEAN) - SIGMA**2 / 2, SIGMA))
            writer.write(HEAD % len(BODY) + BODY)
            TIMES["last"] = time.monotonic()
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


async def main() -> None:
    server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())

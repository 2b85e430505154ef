"""A scriptable OpenAI-compatible server in a process of its own: ``python tests/llm_server.py``.

Prints its port. The reply to a request depends on words in its last message or prompt:
``[status 500]`` and the like answer with that status the first ``[times N]`` times (always without),
``[empty]``, ``[cut]`` and ``[filter]`` give such answers; anything else is echoed with a prefix. A second
argument is a number of open requests beyond which every one is answered with 429 and Retry-After.
GET /stats tells how often each request came and the most requests that were open at once.
"""

import json
import re
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LOCK = threading.Lock()
SEEN: Counter[str] = Counter()
OPEN = {"now": 0, "most": 0}
KEYS: set[str] = set()
DELAY = float(sys.argv[1]) if len(sys.argv) > 1 else 0.0
BUSY = int(sys.argv[2]) if len(sys.argv) > 2 else sys.maxsize
REFUSED = Counter({"busy": 0})


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
        with LOCK:
            SEEN[text] += 1
            times = SEEN[text]
            KEYS.add(self.headers.get("Authorization", ""))
            OPEN["now"] += 1
            OPEN["most"] = max(OPEN.values())
            busy = OPEN["now"] > BUSY
            REFUSED["busy"] += busy
        if busy:
            with LOCK:
                OPEN["now"] -= 1
            self.reply(429, {"error": {"message": "slow down"}}, **{"Retry-After": "0.2"})
            return
        time.sleep(DELAY)
        with LOCK:
            OPEN["now"] -= 1
        status = re.search(r"\[status (\d+)\]", text)
        limit = re.search(r"\[times (\d+)\]", text)
        if status and (not limit or times <= int(limit[1])):
            self.reply(int(status[1]), {"error": {"message": f"scripted {status[1]}"}})
            return
        content, finish = f"because of {text[-40:]}", "stop"
        if "[empty]" in text:
            content = ""
        if "[cut]" in text:
            finish = "length"
        if "[filter]" in text:
            content, finish = None, "content_filter"
        choice = {"index": 0, "finish_reason": finish}
        choice |= {"message": {"role": "assistant", "content": content}} if "messages" in body else {"text": content}
        usage = {"prompt_tokens": len(text.split()), "completion_tokens": 5, "total_tokens": len(text.split()) + 5}
        self.reply(
            200, {"id": "1", "object": "x", "created": 0, "model": "served", "choices": [choice], "usage": usage}
        )

    def do_GET(self):
        with LOCK:
            self.reply(200, {"seen": SEEN, "most_open": OPEN["most"], "keys": sorted(KEYS), "busy": REFUSED["busy"]})

    def reply(self, status, body, **headers):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    request_queue_size = 256


if __name__ == "__main__":
    server = Server(("127.0.0.1", 0), Handler)
    print(server.server_port, flush=True)
    server.serve_forever()

"""A scriptable OpenAI-compatible server in a process of its own: ``python tests/llm_server.py``.

Prints its port. The reply to a request depends on words in its last message or prompt:
``[status 500]`` and the like answer with that status the first ``[times N]`` times (always without),
``[empty]``, ``[cut]`` and ``[filter]`` give such answers, `THOUGHTS` those of reasoning models,
``[fault KIND]`` a fault of `FAULTS`; anything else is
echoed with a prefix. GET /stats tells how often each request came, the most that were open at once, the faults
that were injected, and how many batches were made. Below /refused/ every key is wrong.
"""

import argparse
import json
import random
import re
import socket
import struct
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PARSER = argparse.ArgumentParser()
PARSER.add_argument("--delay", type=float, default=0.0, help="seconds before an answer")
PARSER.add_argument("--busy", type=int, default=sys.maxsize, help="open requests beyond which every one gets 429")
PARSER.add_argument("--faults", type=float, default=0.0, help="share of the first two tries that get a random fault")
PARSER.add_argument("--hang", type=float, default=5.0, help="seconds of the fault of that name")
PARSER.add_argument("--batch_seconds", type=float, default=0.2, help="time from a batch's creation to its end")
PARSER.add_argument("--enqueued", type=float, default=float("inf"), help="most tokens of open batches")
PARSER.add_argument("--refuse_at_once", action="store_true", help="say so in the reply to the creation")
PARSER.add_argument("--lost_replies", type=int, default=0, help="batches that are created without a reply")
PARSER.add_argument("--refuses", type=str.split, default=[], help="fields of a request that get 400")
PARSER.add_argument("--echo_key", action="store_true", help="repeat the key in every error")
ARGS = PARSER.parse_args()

LOCK = threading.Lock()
SEEN: Counter[str] = Counter()
INJECTED: Counter[str] = Counter()
OPEN = {"now": 0, "most": 0}
KEYS: set[str] = set()
BODIES: list[dict] = []
REFUSED = Counter({"busy": 0})
FILES: dict[str, bytes] = {}
BATCHES: dict[str, dict] = {}
SUBMITTED: list[list[str]] = []  # the prompts of each batch
TOO_MANY = "Enqueued token limit reached for m. Limit: 90,000 enqueued tokens."
FAULTS = ["429", "500", "502", "503", "reset", "torn", "hang", "html", "garbage", "schema", "error", "blank"]
PARTS = [
    {"type": "thinking", "thinking": [{"type": "text", "text": "Lyon?"}], "closed": True},
    {"type": "text", "text": "in "},
    {"type": "text", "text": "parts"},
]
THOUGHTS = {  # mark -> content, finish reason
    "[thinks]": ("<think>Lyon? The answer is Lyon.</think>\n\nthought out", "stop"),
    "[parts]": (PARTS, "stop"),
    "[only thoughts]": (None, "length"),
    "[open thoughts]": ("<think>Lyon or", "length"),
    "[stopped thoughts]": ("<think>Lyon or", "stop"),
}


def completion(text, chat):
    """The completion that words in ``text`` ask for."""
    content, finish = f"because of {text[-40:]}", "stop"
    if "[empty]" in text:
        content = ""
    if "[cut]" in text:
        finish = "length"
    if "[filter]" in text:
        content, finish = None, "content_filter"
    for mark, said in THOUGHTS.items():
        if mark in text:
            content, finish = said
    choice = {"index": 0, "finish_reason": finish}
    choice |= {"message": {"role": "assistant", "content": content}} if chat else {"text": content}
    usage = {"prompt_tokens": len(text.split()), "completion_tokens": 5, "total_tokens": len(text.split()) + 5}
    usage = None if "[no usage]" in text else usage
    return {"id": "1", "object": "x", "created": 0, "model": "served", "choices": [choice], "usage": usage}


def prompt_of(body):
    return body["messages"][-1]["content"] if "messages" in body else body["prompt"]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        data = self.rfile.read(int(self.headers["Content-Length"]))
        with LOCK:
            KEYS.add(self.headers.get("Authorization", ""))
        if "/refused/" in self.path:
            self.fail(401, "no such key")
        elif self.path.endswith("/files"):
            self.upload(data)
        elif self.path.endswith("/batches"):
            self.create_batch(json.loads(data))
        else:
            self.complete(json.loads(data))

    def complete(self, body):
        text = prompt_of(body)
        with LOCK:
            BODIES.append(body)
            SEEN[text] += 1
            times = SEEN[text]
            OPEN["now"] += 1
            OPEN["most"] = max(OPEN.values())
            busy = OPEN["now"] > ARGS.busy
            REFUSED["busy"] += busy
        if busy:
            with LOCK:
                OPEN["now"] -= 1
            self.fail(429, "slow down", **{"Retry-After": "0.2"})
            return
        time.sleep(ARGS.delay)
        with LOCK:
            OPEN["now"] -= 1
        if refused := [field for field in ARGS.refuses if field in body]:
            self.fail(400, f"Unsupported parameter: '{refused[0]}' is not supported with this model.")
            return
        status = re.search(r"\[status (\d+)( \w+)?\]", text)
        limit = re.search(r"\[times (\d+)\]", text)
        if status and (not limit or times <= int(limit[1])):
            self.fail(int(status[1]), f"scripted {status[1]}", (status[2] or "").strip() or None)
            return
        fault = re.search(r"\[fault (\w+)\]", text)
        chance = random.Random(f"{text} {times}")
        if fault and (not limit or times <= int(limit[1])):
            self.inject(fault[1])
        elif times <= 2 and chance.random() < ARGS.faults:
            self.inject(chance.choice(FAULTS))
        else:
            self.reply(200, completion(text, "messages" in body))

    def inject(self, kind):
        with LOCK:
            INJECTED[kind] += 1
        if kind.isdigit():
            self.fail(int(kind), "injected", **({"Retry-After": "0.1"} if kind == "429" else {}))
        elif kind == "reset":
            self.hang_up()
        elif kind == "torn":
            whole = json.dumps(completion("torn", True)).encode()
            self.raw(200, whole[: len(whole) // 2], length=len(whole))
            self.close_connection = True
        elif kind == "hang":
            time.sleep(ARGS.hang)
            self.reply(200, completion("too late", True))
        elif kind == "html":
            self.raw(200, b"<html>please log in to the hotel's network</html>", content_type="text/html")
        elif kind == "garbage":
            self.raw(200, b'{"choices": [{"mess\xff')
        elif kind == "schema":
            self.reply(200, {"choices": [{"message": {"content": {"text": 1}}}]})
        elif kind == "error":
            self.reply(200, {"error": {"message": "upstream is gone"}})
        elif kind == "blank":
            self.reply(200, completion("[empty]", True))

    def upload(self, data):
        boundary = re.search("boundary=(.*)", self.headers["Content-Type"])[1].strip('"').encode()
        parts = [part for part in data.split(b"--" + boundary) if b'name="file"' in part]
        name = f"file-{len(FILES)}"
        FILES[name] = parts[0].partition(b"\r\n\r\n")[2].removesuffix(b"\r\n")
        self.reply(200, {"id": name, "object": "file", "bytes": len(FILES[name]), "created_at": 0,
                         "filename": "x.jsonl", "purpose": "batch", "status": "processed"})  # fmt: skip

    def create_batch(self, body):
        name = f"batch_{len(BATCHES)}"
        prompts = [prompt_of(json.loads(line)["body"]) for line in FILES[body["input_file_id"]].splitlines()]
        tokens = sum(map(len, prompts)) / 4
        enqueued = sum(
            batch["tokens"] for batch in BATCHES.values() if time.time() - batch["made"] < ARGS.batch_seconds
        )
        too_many = enqueued + tokens > ARGS.enqueued
        SUBMITTED.append(sorted(prompts))
        if too_many and ARGS.refuse_at_once:
            self.fail(400, TOO_MANY, "token_limit_exceeded")
            return
        body |= {"tokens": 0 if too_many else tokens, "too_many": too_many}
        BATCHES[name] = body | {"id": name, "object": "batch", "created_at": int(time.time()), "made": time.time()}
        if len(BATCHES) <= ARGS.lost_replies:
            self.hang_up()
        else:
            self.reply(200, self.batch(name))

    def batch(self, name):
        """The state of a batch; its answers are made when it is over."""
        batch = BATCHES[name]
        lines = FILES[batch["input_file_id"]].splitlines()
        counts = {"total": len(lines), "completed": 0, "failed": 0}
        own = ("made", "tokens", "too_many")
        found = {k: v for k, v in batch.items() if k not in own} | {"request_counts": counts, "status": "in_progress"}
        if batch["too_many"]:
            errors = {"object": "list", "data": [{"code": "token_limit_exceeded", "message": TOO_MANY}]}
            return found | {"status": "failed", "errors": errors}
        if time.time() - batch["made"] < ARGS.batch_seconds:
            return found
        if b"[batch fails]" in FILES[batch["input_file_id"]]:
            errors = {"object": "list", "data": [{"code": "invalid_request", "message": "too many tokens"}]}
            return found | {"status": "failed", "errors": errors}
        good, bad = [], []
        for line in lines:
            row = json.loads(line)
            text = prompt_of(row["body"])
            SEEN[text] += batch.get("output_file_id") is None
            status = re.search(r"\[status (\d+)\]", text)
            if "[expires]" in text:
                bad.append({"custom_id": row["custom_id"], "response": None,
                            "error": {"code": "batch_expired", "message": "not in time"}})  # fmt: skip
                continue
            BODIES.append(row["body"])
            refused = [field for field in ARGS.refuses if field in row["body"]]
            code = int(status[1]) if status else 400 if refused else 200
            said = f"Unsupported parameter: '{refused[0]}'" if refused else "scripted"
            answer = {"error": {"message": said}} if code != 200 else completion(text, "messages" in row["body"])
            response = {"status_code": code, "request_id": "r", "body": answer}
            (bad if code != 200 else good).append({"custom_id": row["custom_id"], "response": response, "error": None})
        for kind, rows in (("output", good), ("error", bad)):
            if rows:
                text = "".join(json.dumps(row) + "\n" for row in reversed(rows))
                if "[answers gone]" not in text:
                    FILES[f"{name}-{kind}"] = text.replace('"[torn line]', "").encode()
                batch[f"{kind}_file_id"] = found[f"{kind}_file_id"] = f"{name}-{kind}"
        expired = any("batch_expired" in json.dumps(row) for row in bad)
        return found | {"status": "expired" if expired else "completed"}

    def do_GET(self):
        path = self.path.partition("?")[0]
        if path.endswith("/content"):
            name = path.split("/")[-2]
            self.raw(200, FILES[name]) if name in FILES else self.fail(404, "no such file")
        elif path.endswith("/batches"):
            self.reply(200, {"object": "list", "data": [self.batch(name) for name in BATCHES], "has_more": False})
        elif "/batches/" in path:
            name = path.split("/")[-1]
            self.reply(200, self.batch(name)) if name in BATCHES else self.fail(404, "no such batch")
        else:
            with LOCK:
                self.reply(200, {"seen": SEEN, "most_open": OPEN["most"], "bodies": BODIES, "keys": sorted(KEYS),
                                 "busy": REFUSED["busy"], "injected": INJECTED, "batches": len(BATCHES),
                                 "submitted": SUBMITTED})  # fmt: skip

    def hang_up(self):
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def fail(self, status, message, code=None, **headers):
        if ARGS.echo_key:
            message += f" (you sent {self.headers.get('Authorization')})"
        self.reply(status, {"error": {"message": message, "code": code}}, **headers)

    def reply(self, status, body, **headers):
        self.raw(status, json.dumps(body).encode(), **headers)

    def raw(self, status, data, length=None, content_type="application/json", **headers):
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(data) if length is None else length))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    request_queue_size = 256

    def handle_error(self, *_):
        """Clients that are killed hang up; that is what they are killed for."""


if __name__ == "__main__":
    server = Server(("127.0.0.1", 0), Handler)
    print(server.server_port, flush=True)
    server.serve_forever()

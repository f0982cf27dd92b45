"""`dcsft_vllm` against a server: a small rule-based HTTP server on localhost."""

import base64
import io
import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image, ImageChops

from dcsft_harness.errors import HarnessError
from dcsft_harness.models import chat_template, vllm_backends
from dcsft_harness.models.vllm import DcsftVLLM
from tests.fixtures.tiny_checkpoints import checkpoint, documents
from tests.models.test_models_hf import load
from tests.models.test_models_vllm import SAMPLED, drawn


class Api(BaseHTTPRequestHandler):
    """Answers with the sample's seed, or with the next entry of `script` if there is one."""

    def log_message(self, *args):
        pass

    def do_GET(self):
        self.send({"object": "list", "data": [self.card(name) for name in self.server.names]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            instead = self.server.script.pop(0) if self.server.script else None
            self.server.bodies.append(body)
            self.server.keys.add(self.headers["Authorization"])
        if instead == "hang up":
            self.close_connection = True
            return
        if instead is not None:
            self.send({"error": {"message": f"status {instead}", "type": "x", "code": instead}}, instead)
            return
        self.send(self.answer(body))

    def answer(self, body):
        seed = body.get("seed", 7)
        choices = [self.choice(body, seed + n, n) for n in range(body["n"])]
        answer = {"id": "x", "object": "chat.completion", "created": 0, "model": body["model"]}
        # The order of choices is not promised.
        prompt = [1] * self.server.counts.get(said(body), 33)
        return answer | {"choices": choices[::-1], "prompt_token_ids": prompt}

    def choice(self, body, seed, index):
        ids = [40 + int(digit) for digit in str(seed)][: body["max_tokens"] - 1] + [body["stop_token_ids"][0]]
        message = {"role": "assistant", "content": "not read"}
        return {"index": index, "finish_reason": "stop", "message": message, "token_ids": ids}

    def card(self, name):
        return {"id": name, "object": "model", "created": 0, "owned_by": "vllm"}

    def send(self, body, status=200):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def said(body):
    """The text at the end of a request; `counts` knows its prompt tokens."""
    content = body["messages"][-1]["content"]
    return content if isinstance(content, str) else content[-1]["text"]


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(vllm_backends, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(vllm_backends, "LONGEST_WAIT", 0.02)
    running = ThreadingHTTPServer(("127.0.0.1", 0), Api)
    running.names, running.script, running.bodies, running.keys = ["tiny"], [], [], set()
    running.lock, running.counts = threading.Lock(), {}
    running.url = f"http://127.0.0.1:{running.server_port}/v1"
    thread = threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield running
    running.shutdown()
    running.server_close()
    thread.join()


def model(server, **given):
    return DcsftVLLM(pretrained=checkpoint("qwen2_5_vl"), base_url=server.url, **given)


def test_a_request_has_chat_images_and_all_arguments(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    docs = documents()[:2]
    given = {"max_new_tokens": 30, "temperature": 0.5, "top_k": 7, "top_p": 0.8, "until": ["END"]}
    asked = {"max_pixels": 56 * 56, "system_prompt": "Be brief."}
    counted = drawn(load(**asked), docs, {"max_new_tokens": 1})
    server.counts = {docs[one.doc_id]["text"]: one.n_prompt_tokens for one in counted}
    seen = drawn(model(server, **asked), docs, given, repeats=3)
    bodies = sorted(server.bodies, key=lambda body: body["messages"][1]["content"][1]["text"])
    assert [body["n"] for body in bodies] == [3, 3]
    body = bodies[0]
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("tiny", 30, 0.5)
    assert (body["top_k"], body["top_p"], body["min_p"], body["min_tokens"]) == (7, 0.8, 0.0, 0)
    assert (body["repetition_penalty"], body["stop"], body["stop_token_ids"]) == (1.0, ["END"], [2, 0])
    assert body["mm_processor_kwargs"] == {"size": {"shortest_edge": 56 * 56, "longest_edge": 56 * 56}}
    assert body["messages"][0]["role"] == "system"
    url = body["messages"][1]["content"][0]["image_url"]["url"]
    sent = Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,"))))
    assert ImageChops.difference(sent, docs[0]["image"]).getbbox() is None
    assert server.keys == {"Bearer secret"}
    decode = load().tokenizer.decode
    by_seed = [
        decode([40 + int(digit) for digit in str(body["seed"] + n)]) for body in bodies for n in range(3)
    ]
    assert [one.response for one in seen] == by_seed
    assert {one.n_prompt_tokens for one in seen} == set(server.counts.values())
    assert {one.finish_reason for one in seen} == {"stop"}
    assert {one.n_prefilled for one in seen} == {None}  # a server's counters cover all its requests


def test_greedy_samples_are_one_request_without_a_seed(server):
    seen = drawn(model(server), documents()[:1], {"max_new_tokens": 5}, repeats=4)
    assert len(seen) == 4
    assert [(body["n"], body["temperature"], "seed" in body) for body in server.bodies] == [(1, 0.0, False)]


@pytest.mark.parametrize("recorded", [False, True])
def test_a_request_has_the_chat_template_arguments(recorded, server, tmp_path):
    """Given arguments, or those of training; without any, the field is left out."""
    base, arguments = tmp_path / "base", {"enable_thinking": False, "effort": 2}
    shutil.copytree(checkpoint("qwen2_5_vl"), base)
    with (base / "chat_template.jinja").open("a") as template:
        template.write("{% if enable_thinking is defined and effort is defined %}<think></think>{% endif %}")
    drawn(DcsftVLLM(pretrained=str(base), base_url=server.url), documents()[:1], SAMPLED)
    assert "chat_template_kwargs" not in server.bodies[-1]
    given = {} if recorded else {"chat_template_kwargs": json.dumps(arguments)}
    if recorded:
        chat_template.record(base, arguments)
    drawn(DcsftVLLM(pretrained=str(base), base_url=server.url, **given), documents()[:1], SAMPLED)
    assert server.bodies[-1]["chat_template_kwargs"] == arguments


@pytest.mark.parametrize("trouble", [429, 500, 503, "hang up"])
def test_temporary_errors_are_retried(trouble, server):
    server.script += [trouble, trouble]
    one = model(server, batch_size=1)
    assert len(drawn(one, documents()[:2], SAMPLED)) == 2
    assert len(server.bodies) == 4


def test_waiting_times_grow(server, monkeypatch):
    waits: list[float] = []
    monkeypatch.setattr(vllm_backends, "FIRST_WAIT", 1.0)
    monkeypatch.setattr(vllm_backends, "LONGEST_WAIT", 6.0)
    monkeypatch.setattr("tenacity.nap.time.sleep", waits.append)
    server.script += [500] * 4
    drawn(model(server), documents()[:1], SAMPLED)
    assert all(low <= wait <= low + 1.0 for wait, low in zip(waits, (1, 2, 4, 6), strict=True))


def test_a_persistent_error_is_reported_in_one_sentence(server):
    server.script += [503] * 3
    with pytest.raises(HarnessError, match="'tiny', doc_id 0: .* does not answer, tried 3 times .*503"):
        drawn(model(server, attempts=3), documents()[:1], SAMPLED)
    server.script += [503] * 2
    skipping = model(server, attempts=2)
    skipping.refused = {}
    with pytest.raises(HarnessError, match="tried 2 times"):
        drawn(skipping, documents()[:1], SAMPLED)
    assert not skipping.refused  # it is not the item's fault


@pytest.mark.parametrize("status", [400, 401, 404, 422])
def test_a_request_that_the_server_refuses_is_not_retried(status, server):
    server.script.append(status)
    with pytest.raises(HarnessError, match=f"'tiny', doc_id 0: .* refuses it \\(.*{status}"):
        drawn(model(server, batch_size=1), documents()[:3], SAMPLED)
    assert len(server.bodies) == 1


def test_a_missing_server_is_reported_in_one_sentence(server):
    server.shutdown()
    server.server_close()
    with pytest.raises(HarnessError, match="list of models.*tried 2 times.*Start `vllm serve`"):
        model(server, attempts=2)


def test_the_model_is_found_by_name(server):
    server.names = ["base", "adapted"]
    with pytest.raises(HarnessError, match="serves base, adapted. Set served_model_name=NAME"):
        model(server)
    with pytest.raises(HarnessError, match="not other"):
        model(server, served_model_name="other")
    drawn(model(server, served_model_name="adapted"), documents()[:1], SAMPLED)
    assert server.bodies[0]["model"] == "adapted"


def test_a_server_without_token_ids_is_refused(server, monkeypatch):
    known, none = Api.choice, {"token_ids": None}
    monkeypatch.setattr(Api, "choice", lambda self, body, seed, index: known(self, body, seed, index) | none)
    with pytest.raises(HarnessError, match="token ids. Serve the model with vLLM"):
        drawn(model(server), documents()[:1], SAMPLED)


def test_a_client_needs_no_vllm_and_no_key_argument(server, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None if name == "vllm" else object())
    model(server)
    with pytest.raises(HarnessError, match="api_key"):
        model(server, api_key="secret")

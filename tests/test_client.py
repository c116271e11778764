"""The clients, against a served export of the tiny translator: what Python computes, over REST and gRPC. Where TF
Serving is installed, against it too."""

import contextlib
import http.server
import json
import shutil
import socket
import subprocess
import threading
from concurrent import futures

import numpy as np
import pytest
import saved_model
import tensorflow as tf
from stub_model import MOST_WORDS, write_stub
from tiny_translator import ODD_TEXTS, lines, tiny_tokenizer, tiny_translator

pytest.importorskip("grpc", reason="needs the extra serving")
pytest.importorskip("starlette", reason="needs the extra serving")

import grpc
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from keras_attention.client import GrpcClient, RestClient, ServingError, connect, retries
from keras_attention.server import Server

pytestmark = pytest.mark.tensorflow

LONG = 60
ALL_AT_ONCE = 16
MODEL_SERVER = shutil.which("tensorflow_model_server")
SERVERS = ["serve", pytest.param("tf-serving", marks=pytest.mark.skipif(not MODEL_SERVER, reason="needs TF Serving"))]


@pytest.fixture(scope="module")
def exported():
    return saved_model.tiny_export().parent


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]


@contextlib.contextmanager
def tf_serving(folder):
    """TF Serving in a process of its own; the addresses of its REST and its gRPC."""
    rest, grpc_port = free_port(), free_port()
    command = [MODEL_SERVER, f"--rest_api_port={rest}", f"--port={grpc_port}", f"--model_name={folder.name}"]
    with subprocess.Popen([*command, f"--model_base_path={folder.resolve()}"]) as process:
        try:
            RestClient(f"http://127.0.0.1:{rest}", folder.name, retries=12).status()
            yield f"http://127.0.0.1:{rest}", f"127.0.0.1:{grpc_port}"
        finally:
            process.terminate()


@pytest.fixture(scope="module", params=SERVERS)
def addresses(request, exported):
    if request.param == "tf-serving":
        with tf_serving(exported) as both:
            yield both
    else:
        with Server(exported, rest_port=0, grpc_port=0) as server:
            yield server.url, server.address


@pytest.fixture(params=["rest", "grpc"])
def client(request, addresses):
    rest, grpc_address = addresses
    make = {"rest": lambda: RestClient(rest, "tiny"), "grpc": lambda: GrpcClient(grpc_address, "tiny")}
    with make[request.param]() as made:
        made.batch_size = 5  # so that there are several batches
        yield made


@pytest.fixture(scope="module")
def sentences():
    return lines(23, seed=5)


@pytest.fixture(scope="module")
def expected(sentences):
    return tiny_translator()(sentences)


# ---- against a served model


@pytest.mark.filterwarnings("ignore:Texts .* are longer than the model reads")
def test_translations_are_those_of_python(client, sentences, expected):
    assert client.translate(sentences) == expected
    assert client.translate(ODD_TEXTS) == tiny_translator()(ODD_TEXTS)
    assert client.translate([]) == []
    assert client.translate(["\ud800"]) == tiny_translator()(["\ud800"])  # half a character is no UTF-8


def test_the_best_translations_come_with_their_scores(client, sentences, expected):
    translations = client.translate_nbest(sentences)
    assert [[len(each), each[0].text] for each in translations] == [[3, text] for text in expected]
    for each in translations:
        scores = [translation.score for translation in each]
        assert scores == sorted(scores, reverse=True)


def test_scores_agree_with_the_search(client, sentences, expected):
    best = [each[0].score for each in client.translate_nbest(sentences)]
    alpha = tiny_translator().length_penalty
    scores = client.score(sentences, expected)
    # A translation may be written in other pieces than those that its text is cut into.
    same = 0
    for score, (total, tokens) in zip(best, scores, strict=True):
        same += np.isclose(score, total / ((5 + tokens) / 6) ** alpha, atol=1e-4)
    assert same >= len(sentences) / 2
    assert client.score([], []) == []


def test_alignments_have_a_row_for_each_piece(client, sentences, expected):
    alignment = client.align(sentences[0])
    assert alignment.text == expected[0]
    (source,) = tiny_tokenizer().encode([sentences[0]])
    assert alignment.source_pieces == [*tiny_tokenizer().pieces(source), "</s>"]
    assert "".join(alignment.target_pieces[:-1]).replace("▁", " ").strip() == alignment.text
    assert np.shape(alignment.weights) == (len(alignment.target_pieces), len(alignment.source_pieces))
    np.testing.assert_allclose(np.sum(alignment.weights, axis=1), 1, atol=1e-3)


def test_status_names_the_version(client):
    assert client.status() == {1: "AVAILABLE"}


def test_many_at_once_each_get_their_own_answer(addresses, sentences, expected):
    rest, grpc_address = addresses
    both = GrpcClient(grpc_address, "tiny", version=1), RestClient(rest, "tiny", version=1)

    def ask(number):
        return both[number % 2].translate([sentences[number]])[0]

    with both[0], futures.ThreadPoolExecutor(ALL_AT_ONCE) as pool:
        translations = list(pool.map(ask, range(ALL_AT_ONCE)))
    assert translations == expected[:ALL_AT_ONCE]


def test_texts_that_are_too_long_are_cut_with_a_warning(client, sentences):
    texts = [sentences[0], "x" * 100_000, sentences[1]]
    with pytest.warns(UserWarning, match=r"Texts \[1\] are longer than the model reads"):
        translations = client.translate(texts)
    with pytest.warns(UserWarning, match=r"Texts \[1\]"):
        assert len(client.score(texts, ["", "", ""])) == 3
    assert translations[0] == tiny_translator()([sentences[0]])[0]


def test_another_model_and_another_version_are_refused(addresses):
    rest, grpc_address = addresses
    for options in ({"model": "other"}, {"model": "tiny", "version": 99}):
        with pytest.raises(ServingError, match=r"http://.* answered 404: .*Is that the model's name on the server"):
            RestClient(rest, **options).translate(["a"])
        with GrpcClient(grpc_address, **options) as client, pytest.raises(ServingError, match="answered NOT_FOUND"):
            client.translate(["a"])


def test_the_export_in_the_server_answers_all_its_signatures(exported, addresses):
    """Also those that the clients do not use, such as the token ids for another runtime."""
    rest, _ = addresses
    client = RestClient(rest, "tiny")
    texts = saved_model.as_bytes(ODD_TEXTS[:3])
    ids = client._predict("encode_ids", {"source": texts})["ids"]
    assert len({len(row) for row in ids}) == 1
    document = {"signature_name": "decode_ids", "inputs": {"ids": ids[:2]}}
    assert client._send("POST", ":predict", document) == {"outputs": ["", ODD_TEXTS[1]]}


# ---- answers that are none


@pytest.fixture(scope="module")
def strange(tmp_path_factory):
    """A server of the stub, with signatures that break what an export promises."""

    def broken(source):
        return {"text": source, "score": tf.where(source == "good", 0.0, float("nan"))}

    folder = write_stub(tmp_path_factory.mktemp("saved_models") / "stub", serving_default=broken, score=no_tokens)
    with Server(folder, rest_port=0, grpc_port=0) as server:
        yield server


def no_tokens(source, target):
    return {"score": tf.zeros_like(source, tf.float32), "other": target}


def both_clients(server):
    return RestClient(server.url, "stub"), GrpcClient(server.address, "stub")


def test_scores_that_are_no_numbers_are_an_error(strange):
    for client in both_clients(strange):
        with client, pytest.raises(ServingError, match=r"no usable probabilities for texts \[1, 3\]"):
            client.translate(["good", "bad", "good", "bad"])


def test_missing_outputs_are_an_error(strange):
    for client in both_clients(strange):
        with client, pytest.raises(ServingError, match=r"signature score: 1 texts in, but out: {.*'other': 1"):
            client.score(["a"], ["b"])


def test_alignments_and_nbest_of_a_model_that_a_person_can_work_out(strange):
    for client in both_clients(strange):
        with client:
            alignment = client.align("one two")
            assert alignment.target_pieces == ["▁T", "WO", "▁O", "NE", "</s>"]
            np.testing.assert_allclose(alignment.weights[0], [0, 0, 0.6, 0.3, 0.1], atol=1e-6)
            assert [tuple(each) for each in client.translate_nbest(["a b"])[0]] == [
                ("B A", -1.0),
                ("B A?", -2.25),
                ("B A!", -3.0),
            ]
            with pytest.warns(UserWarning, match=r"Texts \[0\]"):
                client.translate_nbest(["w " * (MOST_WORDS + 1)])


# ---- servers that are busy, away, slow or something else


class Canned(http.server.BaseHTTPRequestHandler):
    """Answers with what is next on its list, and counts."""

    def do_POST(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked += 1
        status, body = self.server.answers.pop(0)
        if status is None:
            self.connection.close()  # in the middle of it
            return
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST

    def log_message(self, *_):
        pass


OK = (200, json.dumps({"outputs": {"text": ["b"], "score": [-1.0], "truncated": [False]}}).encode())
BUSY, MANY, GONE = (503, b'{"error": "busy"}'), (429, b'{"error": "too many"}'), (None, b"")


@pytest.fixture
def canned():
    """Makes a server that gives these answers, and a client of it."""
    opened = contextlib.ExitStack()

    def make(*answers, **options):
        server = opened.enter_context(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Canned))
        server.answers, server.asked = list(answers), 0
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        opened.callback(lambda: (server.shutdown(), thread.join()))
        return server, RestClient(f"http://127.0.0.1:{server.server_port}", "m", **options)

    with opened:
        yield make


@pytest.fixture
def pauses(monkeypatch):
    """The pauses that a client would have made."""
    made = []
    monkeypatch.setattr(retries.time, "sleep", made.append)
    return made


def test_a_busy_server_is_asked_again_after_growing_pauses(canned, pauses):
    server, client = canned(BUSY, MANY, GONE, OK)
    assert client.translate(["a"]) == ["b"]
    assert server.asked == 4
    assert len(pauses) == 3
    for number, pause in enumerate(pauses):
        assert 0.1 * 2**number <= pause <= 0.125 * 2**number


def test_a_server_that_stays_busy_is_an_error(canned, pauses):
    server, client = canned(BUSY, BUSY, BUSY, OK, retries=2)
    with pytest.raises(ServingError, match=r"http://127.0.0.1:\d+/v1/models/m:predict answered 503: busy"):
        client.translate(["a"])
    assert (server.asked, len(pauses)) == (3, 2)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((400, b'{"error": "Missing inputs"}'), "answered 400: Missing inputs"),
        ((404, b"not here"), "answered 404: not here.*Is that the model's name"),
        ((413, b'{"error": "too large"}'), "too large. Use a smaller batch_size"),
        ((500, b'{"error": "it broke"}'), "answered 500: it broke"),
        ((504, b'{"error": "late"}'), "answered 504: late"),
        ((200, b"<html>"), "gave no JSON; is it a model server"),
        ((200, b'{"outputs": ["b"]}'), "gave no outputs by name"),
        ((200, b'{"outputs": {"text": ["b", "c"], "score": [1, 2]}}'), r"1 texts in, but out: \{'text': 2"),
    ],
)
def test_an_answer_that_says_no_is_not_asked_for_again(canned, pauses, answer, message):
    server, client = canned(answer, OK)
    with pytest.raises(ServingError, match=message):
        client.translate(["a"])
    assert (server.asked, pauses) == (1, [])


def test_a_status_that_is_none_is_an_error(canned):
    server, client = canned((200, b'{"version": 3}'))
    with pytest.raises(ServingError, match="gave no status"):
        client.status()
    assert server.asked == 1


def test_texts_go_in_batches(canned):
    two = json.dumps({"outputs": {"text": ["b", "c"], "score": [-1.0, -1.0]}}).encode()
    server, client = canned((200, two), (200, two), OK, batch_size=2)
    assert client.translate(["a"] * 5) == ["b", "c", "b", "c", "b"]
    assert server.asked == 3


def test_a_server_that_is_away_is_tried_again(pauses):
    port = free_port()
    with pytest.raises(ServingError, match=rf"http://127.0.0.1:{port}/.* cannot be reached .*refused.*running there"):
        RestClient(f"http://127.0.0.1:{port}", retries=2).translate(["a"])
    assert len(pauses) == 2
    away = pytest.raises(ServingError, match=rf"grpc://127.0.0.1:{port}/en-de answered UNAVAILABLE")
    with GrpcClient(f"127.0.0.1:{port}", retries=2) as client, away:
        client.status()
    assert len(pauses) == 4


def test_a_server_that_does_not_answer_is_left_after_the_timeout(pauses):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(ServingError, match=r"within timeout=0\.1 seconds; allow more, or send fewer"):
            RestClient(f"http://127.0.0.1:{port}", timeout=0.1).translate(["a"])
        late = pytest.raises(ServingError, match=r"DEADLINE_EXCEEDED.*Allow more than timeout=0\.1 seconds")
        with GrpcClient(f"127.0.0.1:{port}", timeout=0.1) as client, late:
            client.translate(["a"])
    assert pauses == []


def test_a_host_that_does_not_exist(pauses):
    with pytest.raises(ServingError, match=r"cannot be reached .*Is the URL right"):
        RestClient("http://no-such-host.invalid:8501").translate(["a"])
    assert pauses == []


class Busy(prediction_service_pb2_grpc.PredictionServiceServicer):
    def __init__(self, codes):
        self.codes = list(codes)

    def Predict(self, request, context):
        if self.codes:
            context.abort(self.codes.pop(0), "not now")
        response = predict_pb2.PredictResponse()
        response.outputs["text"].CopyFrom(tf.make_tensor_proto(["b"]))
        response.outputs["score"].CopyFrom(tf.make_tensor_proto([-1.0]))
        return response


@pytest.mark.parametrize(("code", "left"), [("UNAVAILABLE", 0), ("INVALID_ARGUMENT", 1), ("RESOURCE_EXHAUSTED", 1)])
def test_grpc_asks_again_only_where_that_can_help(pauses, code, left):
    busy = Busy([grpc.StatusCode[code]] * 2)
    server = grpc.server(futures.ThreadPoolExecutor(2))
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(busy, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with GrpcClient(f"127.0.0.1:{port}") as client:
        if left:
            with pytest.raises(ServingError, match=f"answered {code}: not now"):
                client.translate(["a"])
        else:
            assert client.translate(["a"]) == ["b"]
    server.stop(None).wait()
    assert len(busy.codes) == left
    assert len(pauses) == 2 * (1 - left)


# ---- arguments


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RestClient("localhost:8501"), "url must be a server's, such as http://localhost:8501. Received"),
        (lambda: RestClient("ftp://localhost"), "Received: url='ftp://localhost'"),
        (lambda: RestClient("http://localhost:8501?x=1"), "url must be"),
        (lambda: GrpcClient("http://localhost:8500"), "address must be HOST:PORT"),
        (lambda: GrpcClient("localhost"), "Received: address='localhost'"),
        (lambda: RestClient("http://localhost", model=""), "model must be a name"),
        (lambda: RestClient("http://localhost", timeout=0), "timeout must be 0.001 or more. Received: timeout=0"),
        (lambda: RestClient("http://localhost", retries=-1), "retries must be 0 or more. Received: retries=-1"),
        (lambda: RestClient("http://localhost", batch_size=0), "batch_size must be 1 or more"),
        (lambda: connect("http://localhost:8501"), "url must name a server and a model: .*Received: url="),
        (lambda: connect("localhost:8501/en-de"), "url must name"),
        (lambda: connect("http://localhost/v1/models/en-de/versions/new"), "url must name"),
        (lambda: RestClient("http://localhost").score(["a"], []), "targets must be as many as sources. Received: 0"),
    ],
)
def test_wrong_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_texts_that_are_none():
    client = RestClient("http://localhost")
    with pytest.raises(TypeError, match=r"source must be a list of texts; write \[text\] for one. Received: 'a'"):
        client.translate("a")
    with pytest.raises(TypeError, match=r"source: each text must be str or bytes. Received: 3"):
        client.translate(["a", 3])


@pytest.mark.parametrize(
    ("url", "server", "model", "version"),
    [
        ("http://localhost:8501/v1/models/en-de", "http://localhost:8501", "en-de", None),
        ("http://localhost:8501/v1/models/en-de:predict", "http://localhost:8501", "en-de", None),
        ("http://[::1]:8501/en-de/", "http://[::1]:8501", "en-de", None),
        ("https://host/behind/v1/models/en%20de/versions/3", "https://host/behind", "en de", 3),
        ("grpc://localhost:8500/en-de", "localhost:8500", "en-de", None),
        ("grpc://[::1]:8500/en-de/versions/3", "[::1]:8500", "en-de", 3),
    ],
)
def test_a_url_names_server_and_model(url, server, model, version):
    with connect(url, batch_size=7) as client:
        assert (client.url if isinstance(client, RestClient) else client.address) == server
        assert (client.model, client.version, client.batch_size) == (model, version, 7)

"""The command line against a real server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

import gradoracle as go
from gradoracle import cli

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(server: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command in this process: exit code, stdout, stderr. The server is named by the environment."""
    monkeypatch.setenv("GRADORACLE_ADDRESS", server)

    def run(*arguments: str) -> tuple[int, str, str]:
        code = cli.main(arguments)
        return code, *capsys.readouterr()

    return run


def document(outcome: tuple[int, str, str]) -> Any:
    """The JSON that a command printed."""
    code, out, err = outcome
    assert (0, "") == (code, err)
    assert 1 == out.count("\n")
    return json.loads(out)


def process(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    """A command in a process of its own."""
    command = [sys.executable, "-m", "gradoracle.cli", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


# ---- grad and eval


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        (["x.sin()", "x=0"], "x: 1\n"),
        (["(x * w).sum()", "x=[1,2]", "w=[3,4]"], "x: [3, 4]\nw: [1, 2]\n"),
        (["(x * w).sum()", "x=[1,2]", "w=[3,4]", "--wrt", "w"], "w: [1, 2]\n"),
        (["(x * w).sum()", "x=[1,2]", "w=[3,4]", "--outputs", "--wrt", "x"], "out: 11\nx: [3, 4]\n"),
        (["x * 0 + 1", "x=2", "--retain", "mul"], "x: 0\nmul: 1\n"),
        (["x * detach(w)", "x=2", "w=3"], "x: 3\nw: None (the outputs do not depend on it)\n"),
        (
            ["(x * w).sum()", "x=[[1,2],[3,4]]", "w=[1,1]", "--batched", "x"],
            "x: [[1, 1],\n    [1, 1]]\nw: [[1, 2],\n    [3, 4]]\n",
        ),
        (["x.sum()", "x=ones:2x2:float32"], "x: [[1, 1],\n    [1, 1]]\n"),
        (["(x * x.conj()).real", "x=1+2j"], "x: 2+4j\n"),
        (["index_select(x, 0, i).sum()", "x=[1,2,3]", "i=[0,0]", "--no-grad-input", "i"], "x: [2, 0, 0]\n"),
        (["--", "-x**2", "x=3"], "x: -6\n"),
    ],
)
def test_grad(run: Run, arguments: list[str], printed: str) -> None:
    """grad prints a line for each gradient, in the graph's order, then the retained ones."""
    assert (0, printed, "") == run("grad", *arguments)


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        (["x**2", "x=2:int64"], "x: None (int64 has no gradient)\n"),
        (["sum(x * w)", "x=integers:0:9:2", "w=[1,1]"], None),
        (["sum(x**2 + 0 * n)", "x=[1,2]", "n=[1,0]:bool"], "x: [2, 4]\nn: None (bool has no gradient)\n"),
        (["x + 0 * y.detach()", "x=1", "y=2"], "x: 1\ny: None (the outputs do not depend on it)\n"),
        (["x**2", "x=2", "--no-grad-input", "x"], "no input requires grad\n"),
    ],
)
def test_inputs_without_a_gradient(run: Run, arguments: list[str], printed: str | None) -> None:
    """Why there is none is said as it is."""
    code, out, err = run("grad", *arguments)

    assert (0, "") == (code, err)
    assert printed == out if printed else out.startswith("x: None (int64 has no gradient)\nw: [")


def test_json_keeps_every_bit(run: Run) -> None:
    """--json gives outputs, gradients, dtypes and timing; numbers in full."""
    found = document(run("grad", "3*x**2", "x=[1,1,1]", "--cotangent", "out=[0.1,1,10]", "--json"))

    assert {"outputs", "gradients", "dtypes", "timing"} == set(found)
    assert {"out": [3.0, 3.0, 3.0]} == found["outputs"]
    assert {"x": [0.1 * 3 * 2, 6.0, 60.0]} == found["gradients"]
    assert {"outputs": {"out": "float64"}, "gradients": {"x": "float64"}} == found["dtypes"]
    assert ["queue", "decode", "plan", "forward", "backward", "check", "encode"] == list(found["timing"])


def test_random_inputs_are_the_servers(run: Run) -> None:
    """normal:… is what torch draws with that seed; the second random input has the next seed."""
    import torch

    expected = [
        torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)
    ]
    graph = "stack([x, y])"

    found = document(run("eval", graph, "x=normal:2x3", "y=normal:2x3", "--json"))

    assert [one.tolist() for one in expected] == found["outputs"]["out"]


def test_seed_is_the_graphs(run: Run) -> None:
    """--seed is what torch.manual_seed is called with before the run."""
    import torch

    torch.manual_seed(7)
    expected = torch.rand(3, dtype=torch.float64).tolist()

    assert {"out": expected} == document(run("eval", "rand_like(x)", "x=zeros:3", "--seed", "7", "--json"))["outputs"]


def test_graph_and_inputs_from_files(run: Run, tmp_path: Path) -> None:
    """A graph comes from a .json or .pb file, inputs from .npz and .npy files; what is typed goes before the file."""
    graph = tmp_path / "graph.json"
    graph.write_text(go.Graph.parse("(x * w).sum()").to_json())
    x, w = np.array([1.0, 2.0]), np.array([3.0, 4.0])
    np.savez(tmp_path / "both.npz", x=x, w=w)
    np.save(tmp_path / "x.npy", x)
    expected = (0, "out: 11\n", "")

    assert expected == run("eval", str(graph), "--inputs", str(tmp_path / "both.npz"))
    assert expected == run("eval", str(graph), "w=[3,4]", "--inputs", str(tmp_path / "x.npy"))
    assert expected == run("eval", str(graph), "w=[3,4]", f"x=@{tmp_path}/x.npy")
    assert (0, "out: 3\n", "") == run("eval", str(graph), "w=[1,1]", "--inputs", str(tmp_path / "both.npz"))
    for name in ("graph.pb", "graph.binpb"):
        (tmp_path / name).write_bytes(go.Graph.parse("(x * w).sum()").to_bytes())
        assert expected == run("eval", str(tmp_path / name), "--inputs", str(tmp_path / "both.npz"))


def test_one_array_for_two_inputs(run: Run, tmp_path: Path) -> None:
    """A .npy file is refused where it is not clear which input it is."""
    file = tmp_path / "x.npy"
    np.save(file, np.ones(2))

    expected = (
        f"error: --inputs {file}: a .npy file holds one array, expected one input without a value, got x, w; "
        f"write NAME=@{file}\n"
    )

    assert (2, "", expected) == run("eval", "x * w", "--inputs", str(file))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["x * w", "x=1"], '"w"'),
        (["x", "x=1", "y=2"], '"y"'),
        (["x + y", "x=[1,2]", "y=[1,2,3]"], "must match the size of tensor"),
        (["x @ x", "x=2"], "at least 1D"),
        (["linalg_inv(x)", "x=zeros:2x2"], "singular"),
        (["sinn(x)", "x=1"], 'did you mean "sin"'),
        (["x.exp()", "x=1", "--device", "cuda:97"], "cuda:97"),
        (["x.exp()", "x=ones:-1"], "expected a size such as 8x64, 5 or scalar, got '-1'"),
    ],
)
def test_bad_input(run: Run, arguments: list[str], says: str) -> None:
    """What the caller can mend ends with 2 and one line, in the client's or the server's words."""
    code, out, err = run("eval", *arguments)

    assert (2, "") == (code, out)
    assert err.startswith("error: ")
    assert says in err
    assert 1 == err.count("\n")


def test_timeout(run: Run) -> None:
    """A deadline that passes is the service's failure: 3."""
    code, out, err = run("eval", "(x @ x @ x).sum()", "x=normal:2000x2000", "--timeout", "0.02")

    assert (3, "") == (code, out)
    assert err.startswith("error: ")
    assert 1 == err.count("\n")


# ---- ops, info, health


def test_ops(run: Run) -> None:
    """ops shows the overloads with their schemas; unwrapped where it is piped."""
    code, out, err = run("ops", "aten.softmax")

    assert (0, "") == (code, err)
    assert "aten.softmax.int" in out
    assert "(Tensor self, int dim, ScalarType? dtype=None) -> Tensor" in out
    assert out.endswith("1 served\n")


def test_ops_json(run: Run) -> None:
    """--json gives each operator as an object."""
    found = document(run("ops", "aten.dropout.", "--json"))

    assert [
        {
            "name": "aten.dropout.default",
            "schema": "aten::dropout(Tensor input, float p, bool train) -> Tensor",
            "differentiable": True,
            "random": True,
            "refused": None,
        }
    ] == found


def test_refused_ops(run: Run) -> None:
    """--refused shows what is not served, and why."""
    code, out, err = run("ops", "from_file", "--refused")

    assert (0, "") == (code, err)
    assert "aten.from_file.default" in out
    assert out.endswith(" refused\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["softmxa"], "no operator has 'softmxa' in its name; did you mean \"softmax\""),
        (["aten.softmxa.int"], "no operator has 'aten.softmxa.int' in its name; did you mean \"softmax\""),
        (["from_file"], "aten.from_file.default is not served: it "),
        (
            ["aten.relu.default", "--refused"],
            "no refused operator has 'aten.relu.default' in its name; without --refused there is aten.relu.default",
        ),
    ],
)
def test_no_such_op(run: Run, arguments: list[str], message: str) -> None:
    """Where nothing matches, the nearest names are told, or where the operator is to be found."""
    code, out, err = run("ops", *arguments)

    assert (2, "") == (code, out)
    assert err.startswith(f"error: {message}")
    assert 1 == err.count("\n")


def test_info(run: Run, server: str, client: go.Client) -> None:
    """info tells versions, devices and limits."""
    info = client.server_info()

    code, out, err = run("info")
    found = document(run("info", "--json"))

    assert (0, "") == (code, err)
    assert out.startswith(f"{server}: gradoracle {go.__version__}, torch {info.torch_version}, python ")
    assert "graph nodes" in out
    assert (server, info.torch_version) == (found["address"], found["torch_version"])
    assert info.default_device in [device["name"] for device in found["devices"]]
    assert info.limits.graph_nodes == found["limits"]["graph_nodes"]


def test_health(run: Run) -> None:
    """health says SERVING and ends with 0, for the server and for its services."""
    assert (0, "SERVING\n", "") == run("health")
    assert (0, "SERVING\n", "") == run("health", "--service", "gradoracle.v1.GradientService")
    assert {"service": "", "status": "SERVING"} == document(run("health", "--json"))


def test_health_of_an_unknown_service(run: Run) -> None:
    """A health service that the server does not know is a usage error."""
    assert (2, "", "error: --service: expected one that the server knows, got 'nonsense'\n") == run(
        "health", "--service", "nonsense"
    )


@pytest.mark.parametrize(("number", "word", "code"), [(1, "SERVING", 0), (2, "NOT_SERVING", 3), (0, "UNKNOWN", 3)])
def test_health_of_an_unwell_server(run: Run, number: int, word: str, code: int) -> None:
    """Whatever a server says but SERVING ends with 3."""
    check = grpc.unary_unary_rpc_method_handler(lambda request, context: bytes([8, number]) if number else b"")
    unwell = grpc.server(ThreadPoolExecutor(1))
    unwell.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("grpc.health.v1.Health", {"Check": check}),))
    port = unwell.add_insecure_port("127.0.0.1:0")
    unwell.start()
    try:
        assert (code, f"{word}\n", "") == run("health", "--address", f"127.0.0.1:{port}")
    finally:
        unwell.stop(None).wait()


def test_health_watch_until_ctrl_c(server: str) -> None:
    """--watch goes on until Ctrl-C, which ends it with 130 and without a word."""
    with process("health", "--watch", "--address", server) as watching:
        assert watching.stdout is not None
        line = watching.stdout.readline()
        watching.send_signal(signal.SIGINT)
        out, err = watching.communicate(timeout=30)

    assert ("SERVING\n", 130, "", "") == (line, watching.returncode, out, err)


# ---- The program as such


def test_a_reader_that_goes_away(server: str) -> None:
    """`gradoracle ops | head -1` ends without complaint."""
    with process("ops", "--address", server) as listing:
        assert listing.stdout is not None
        listing.stdout.readline()
        listing.stdout.close()
        assert listing.stderr is not None
        err = listing.stderr.read()

    assert (141, "") == (listing.returncode, err)


def test_starts_a_server_itself() -> None:
    """Without an address a one-shot command starts a server, and leaves none behind."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GRADORACLE_")}

    with process("eval", "x + 1", "x=1", "--json", env=environment, start_new_session=True) as asking:
        out, err = asking.communicate(timeout=60)

    assert (0, "") == (asking.returncode, err)
    assert {"out": 2.0} == json.loads(out)["outputs"]


def test_serve(run: Run, tmp_path: Path) -> None:
    """serve is the server: it prints its line, answers who brings a token, and ends with 0 on SIGTERM."""
    tokens, wrong = tmp_path / "tokens", tmp_path / "wrong"
    tokens.write_text("secret-1\nsecret-2\n")
    wrong.write_text("guess\n")
    flags = ["--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0", "--workers", "1", "--device=cpu"]

    with process("serve", *flags, "--token-file", str(tokens)) as serving:
        assert serving.stdout is not None
        line = serving.stdout.readline()
        address = line.removeprefix("gradoracle listening on ").split()[0]
        asking = ("eval", "x + 1", "x=1", "--address", address)
        without, with_wrong = run(*asking), run(*asking, "--token-file", str(wrong))
        with_right = run(*asking, "--token-file", str(tokens))
        workers = document(run("info", "--address", address, "--token-file", str(tokens), "--json"))["devices"]
        serving.send_signal(signal.SIGTERM)
        serving.communicate(timeout=60)

    assert line.startswith("gradoracle listening on 127.0.0.1:")
    assert (0, "out: 2\n", "") == with_right
    for code, out, err in (without, with_wrong):
        assert (2, "", 1) == (code, out, err.count("\n"))
        assert "; give one as token=, or on the command line in a file, as --token-file" in err
        assert "secret" not in err
    assert [("cpu", 1)] == [(device["name"], device["workers"]) for device in workers]
    assert 0 == serving.returncode


def test_tls(run: Run) -> None:
    """--tls-ca, --tls-cert and --tls-key are what a server with TLS and client certificates asks for."""
    folder = Path(__file__).parent / "certificates"
    authority = str(folder / "authority.pem")
    shown = ("--tls-ca", authority, "--tls-cert", str(folder / "client.pem"), "--tls-key", str(folder / "client.key"))
    flags = {"tls_cert": folder / "server.pem", "tls_key": folder / "server.key", "tls_client_ca": authority}

    with go.local_server(**flags) as address:
        place = ("--address", f"localhost:{address.rpartition(':')[2]}", "--timeout", "20")
        evaluated, healthy = run("eval", "x + 1", "x=1", *place, *shown), run("health", *place, *shown)
        plain, nameless = run("health", *place), run("health", *place, "--tls-ca", authority)
        strange = run("health", "--address", address, "--tls-ca", str(folder / "stranger.pem"))

    assert (0, "out: 2\n", "") == evaluated
    assert (0, "SERVING\n", "") == healthy
    assert (3, "") == plain[:2] == nameless[:2] == strange[:2]
    assert "this client used no TLS; a server that wants TLS is reached with tls= (--tls, --tls-ca)" in plain[2]
    assert f"trusting the authorities in {authority}, with no certificate of its own; see that tls=" in nameless[2]
    assert "is reached with TLS(cert=, key=) (--tls-cert, --tls-key)" in nameless[2]
    assert strange[2].startswith(f"error: TLS with {address} failed: ")
    assert "stranger.pem, with no certificate of its own: see that tls= (--tls-ca) names the authority" in strange[2]


def test_tls_to_a_server_without(run: Run, server: str) -> None:
    """That is said, too."""
    code, out, err = run("eval", "x", "x=1", "--tls")

    assert (3, "") == (code, out)
    assert err.startswith(f"error: TLS with {server} failed: ")
    assert err.endswith("the server speaks without, it seems; leave tls= (--tls, --tls-ca) out\n")


def test_files_that_are_no_certificates(run: Run) -> None:
    """They are the caller's to mend: exit code 2."""
    folder = Path(__file__).parent / "certificates"
    pair = ("--tls-cert", str(folder / "client.pem"), "--tls-key", str(folder / "renewed.key"))

    text = f"TLS: expected as key the PEM key of {pair[1]}, without a password, got {pair[3]}"

    assert (2, "", f"error: {text}\n") == run("eval", "x", "x=1", *pair)


def test_serve_help_and_errors_are_the_servers() -> None:
    """`serve --help` lists the server's flags; one that it does not know ends with 2."""
    with process("serve", "--help") as helping:
        out, _ = helping.communicate(timeout=60)
    with process("serve", "--nonsense") as failing:
        _, err = failing.communicate(timeout=60)

    assert (0, 2) == (helping.returncode, failing.returncode)
    assert "--max-graph-nodes" in out
    assert "--nonsense" in err

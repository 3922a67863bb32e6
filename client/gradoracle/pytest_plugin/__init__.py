"""The pytest plugin: gradients judged in tests.

    def test_softmax(assert_gradients):
        assert_gradients("softmax(x, dim=-1)", np.random.randn(8, 64))

    from gradoracle.pytest_plugin import assert_gradients, case

    def test_my_kernel():
        assert_gradients(my_kernel, torch.randn(8, dtype=torch.float64, requires_grad=True))

    @pytest.mark.gradoracle_cases
    @pytest.mark.parametrize("n", range(1, 100))
    def test_cumsum(n):
        return case("x.cumsum(0)", np.random.randn(n))

The last one sends its cases over one stream: each parameter makes its case, which is judged while the next ones are
made, and reports its own verdict.

The server is that of `--gradoracle-address`, of the ini option `gradoracle_address`, or of GRADORACLE_ADDRESS; else a
private one, which is started when the first test wants it and stopped with the session. With pytest-xdist each worker
has one of its own, unless there is an address; and a worker waits for the cases of a test before it runs the next,
since it may not report tests late.

pytest loads this module in every run, also of projects that do not use it: so it imports nothing but the standard
library and pytest, until a test uses it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from gradoracle.pytest_plugin.session import Session, address_of, current

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from gradoracle.checks import CheckReport
    from gradoracle.client import Client
    from gradoracle.graph import Graph
    from gradoracle.pytest_plugin.asking import Case

__all__ = ["assert_gradients", "case"]

MARKER = "gradoracle_cases"

_SESSIONS = pytest.StashKey[Session]()
_STREAMED = pytest.StashKey[Any]()


def assert_gradients(
    fn_or_graph: Callable[..., Any] | Graph | str,
    /,
    *inputs: Any,
    claimed: Any = None,
    client: Client | None = None,
    allow_inconclusive: bool = False,
    **options: Any,
) -> CheckReport:
    """Fails, with the report as its message, unless every gradient is shown to be right. Gives the report.

    The arguments are those of `gradoracle.check`: a torch callable, a Graph or an expression, and its inputs in order;
    of a Graph or an expression also one mapping of them by name. `claimed` holds gradients to be judged in place of
    autograd's own; options are `cotangents`, `order`, `mode`, `seed`, `forward_mode`, `batched_gradients`, `device` and
    `timeout`. `client` is asked in place of the session's. With `allow_inconclusive` only a wrong gradient fails, one
    outside the slopes of a kink too, and not a point at which there is no verdict.

    Raises AssertionError, and whatever `gradoracle.check` raises; RuntimeError outside of pytest without a `client`.
    """
    __tracebackhide__ = True
    from gradoracle.pytest_plugin import asking

    found = asking.Case(fn_or_graph, inputs, claimed, options)
    report = found.judged_by(client if client is not None else current().client)
    text = asking.complaint(report, allow_inconclusive=allow_inconclusive)
    if text:
        raise AssertionError(text)
    return report


def case(fn_or_graph: Callable[..., Any] | Graph | str, /, *inputs: Any, claimed: Any = None, **options: Any) -> Case:
    """What a test marked `gradoracle_cases` returns, alone or in a list: arguments as of `assert_gradients`."""
    from gradoracle.pytest_plugin.asking import Case

    return Case(fn_or_graph, inputs, claimed, options)


# ---- Fixtures


@pytest.fixture(scope="session")
def gradoracle(pytestconfig: pytest.Config) -> Client:
    """A gradoracle.Client of the session's server."""
    return pytestconfig.stash[_SESSIONS].client


@pytest.fixture(name="assert_gradients", scope="session")
def _assert_gradients() -> Callable[..., CheckReport]:
    """assert_gradients(fn_or_graph, *inputs, claimed=…): fails with a report unless every gradient is right."""
    return assert_gradients


# ---- Hooks


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options that say where the server is."""
    group = parser.getgroup("gradoracle", "gradients (gradoracle)")
    group.addoption(
        "--gradoracle-address",
        metavar="HOST:PORT",
        help="the gradoracle server; default: a private one, started at first use",
    )
    group.addoption("--gradoracle-token-file", metavar="FILE", help="send the token in this file's first line")
    group.addoption("--gradoracle-tls-ca", metavar="FILE", help="TLS, trusting these authorities, PEM")
    group.addoption("--gradoracle-workers", metavar="N", type=int, default=1, help="workers of a private server")
    parser.addini("gradoracle_address", "the gradoracle server, as --gradoracle-address")


def pytest_configure(config: pytest.Config) -> None:
    """Makes ready; starts nothing."""
    config.addinivalue_line(
        "markers",
        f"{MARKER}(allow_inconclusive=False): the test returns gradoracle.pytest_plugin.case(…), or a list of them; "
        "the cases of all such tests go over one stream, and each test has the verdict of its own",
    )
    config.stash[_SESSIONS] = Session(config)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stops the private server, if there is one."""
    session = config.stash.get(_SESSIONS, None)
    if session is not None:
        session.close()


def pytest_report_header(config: pytest.Config) -> str | None:
    """Says which server is asked, where that was chosen."""
    address = address_of(config)
    return f"gradoracle: {address}" if address else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuses marked tests that cannot return a case, which would pass without being judged."""
    for item in items:
        if item.get_closest_marker(MARKER) and isinstance(item, pytest.Function):
            from gradoracle.pytest_plugin import streamed

            streamed.check_usable(item)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Runs marked tests, and reports them once their verdicts are there."""
    if not _is_marked(item):
        return None
    from gradoracle.pytest_plugin import streamed

    config = item.config
    if _STREAMED not in config.stash:
        config.stash[_STREAMED] = streamed.Streamed(config.stash[_SESSIONS])
    # A worker of pytest-xdist reports each test before the next one runs, or the run breaks.
    is_last = nextitem is None or not _is_marked(nextitem) or hasattr(config, "workerinput")
    config.stash[_STREAMED].run(item, nextitem, is_last=is_last)
    return True


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """Keeps what a marked test returns."""
    if not _is_marked(pyfuncitem):
        return (yield)
    from gradoracle.pytest_plugin import streamed

    with streamed.kept(pyfuncitem):
        result = yield
    streamed.prepare(pyfuncitem)
    return result


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Ends a stream that an interruption left open."""
    streamed = session.config.stash.get(_STREAMED, None)
    if streamed is not None:
        streamed.abandon()


def _is_marked(item: pytest.Item) -> bool:
    return isinstance(item, pytest.Function) and item.get_closest_marker(MARKER) is not None

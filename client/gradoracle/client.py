"""The blocking client."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar, overload

from gradoracle import channel, checks, requests, results, stream
from gradoracle.direct import Direct
from gradoracle.errors import GradOracleError, ResourceLimitError
from gradoracle.gathering import Gathering
from gradoracle.graph import Graph
from gradoracle.requests import Request, Tensors
from gradoracle.rpc import Channels
from gradoracle.selections import Names
from gradoracle.shared_memory import Memory, Use
from gradoracle.tls import TLS

R = TypeVar("R")


class Client:
    """A client of one server. Any number of threads may use it at once, and processes that were forked off.

        with Client("localhost:50051") as client:
            client.vjp("x**2", {"x": 3.0}).gradients["x"]  # 6.0

    Without an address it takes GRADORACLE_ADDRESS from the environment, then localhost:50051. `tls` is True, the path
    of a CA's certificate, or a `TLS`. `token` goes with every call as a bearer token. `timeout` is in seconds, for
    calls that name none: ten minutes unless said, math.inf for no limit. `channels` is the number of connections, over
    which calls are spread; over a single one to an IP address, localhost or a socket, small calls that several threads
    make at the same time go together. A call that a server cannot take just now is repeated, five times at most.
    With a server of this user on this machine, at a loopback address without TLS, or where it offers that at
    "unix:PATH" (serve --shared-memory), large tensors are handed over as memory files, up to 256 MiB of which the
    client keeps for the next ones, and calls go over a socket without gRPC, which is asked where that fails.
    `shared_memory=False` keeps from it; with True it is an error where a server at "unix:PATH" does not offer it.

    In every method `graph` is a Graph or an expression, and `primals` holds a tensor for each of its inputs, by name: a
    numpy array, a number, nested lists of numbers, anything with `__dlpack__`, or one that the server makes (`normal`,
    `uniform`, `integers`, `fill`). `device` is "cpu", "cuda", "cuda:1", or None for the server's default. `seed` is
    what torch.manual_seed is called with before the run. Every method raises the exceptions of `gradoracle.errors`.

    Making a client connects to nothing; the first call does.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        tls: bool | str | Path | TLS | None = None,
        token: str | None = None,
        timeout: float | None = None,
        channels: int = 1,
        shared_memory: bool | None = None,
    ) -> None:
        self._target = channel.target(
            address, tls=tls, token=token, timeout=timeout, channels=channels, shared_memory=shared_memory
        )
        self._owned = contextlib.ExitStack()  # a server of its own, memory
        self._memory = Memory.at(self._target)
        self._direct = Direct(self._target)
        if self._memory is not None:
            self._owned.callback(self._memory.close)
        self._channels = Channels(self._target)
        self._gathering = Gathering(self._target, self._channels.next_stream)
        self._process = os.getpid()

    @classmethod
    def local(
        cls, workers: int | None = 1, *, timeout: float | None = None, channels: int = 1, **settings: Any
    ) -> Client:
        """A client of a private server, which is started now and stopped when the client is closed.

        `workers` and `settings` are those of `local_server`. Needs gradoracle[server] here.
        """
        from gradoracle.local import local_server

        with contextlib.ExitStack() as starting:
            address = starting.enter_context(local_server(workers, **settings))
            client = cls(address, timeout=timeout, channels=channels)
            client._owned.push(starting.pop_all())
        return client

    @property
    def address(self) -> str:
        """Where the server is."""
        return self._target.address

    def close(self) -> None:
        """Closes the connections. Calls that are still running fail."""
        self._channels.refuse()
        self._direct.close()  # first: a server of its own waits for the calls that it has
        self._channels.close()
        if os.getpid() == self._process:  # else they are those of the process that forked
            self._owned.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.address}{', closed' if self._channels.closed else ''}>"

    # ---- Methods, one an RPC

    def evaluate(
        self,
        graph: Graph | str,
        primals: Tensors,
        *,
        device: str | None = None,
        seed: int | None = None,
        timeout: float | None = None,
    ) -> results.EvaluateResult:
        """The outputs of a graph, run under no_grad."""
        return self._call(requests.evaluate(graph, primals, device=device, seed=seed), timeout)

    def vjp(
        self,
        graph: Graph | str,
        primals: Tensors,
        cotangents: Tensors | None = None,
        *,
        wrt: Names | None = None,
        retain: Names = (),
        batched: Names = (),
        device: str | None = None,
        seed: int | None = None,
        timeout: float | None = None,
    ) -> results.VjpResult:
        """Outputs and vector-Jacobian products: reverse-mode gradients of the sum of <cotangent, output>.

        `cotangents` holds tensors of the outputs' shapes by the outputs' names; outputs that are left out contribute
        nothing. None stands for 1 for every output, and is allowed only where each output that requires grad is a real
        scalar; otherwise TensorError. Numbers among them are cast to the output's dtype.

        `wrt` names the inputs whose gradients are wanted (default: every input that requires grad), `retain` further
        values, by name or as Values, as torch's retain_grad does. The inputs in `batched` carry a leading batch axis:
        the graph is written for one example, and outputs and gradients come back with that axis, one slice an example.

        A gradient has its value's shape and dtype, in torch's convention where complex. It is None where no output
        depends on the value.
        """
        request = requests.vjp(
            graph, primals, cotangents, wrt=wrt, retain=retain, batched=batched, device=device, seed=seed
        )
        return self._call(request, timeout)

    def jvp(
        self,
        graph: Graph | str,
        primals: Tensors,
        tangents: Tensors,
        *,
        device: str | None = None,
        seed: int | None = None,
        timeout: float | None = None,
    ) -> results.JvpResult:
        """Outputs and Jacobian-vector products: forward-mode tangents.

        `tangents` holds a tensor of the input's shape for one input at least; the others stand still.
        """
        return self._call(requests.jvp(graph, primals, tangents, device=device, seed=seed), timeout)

    def jacobian(
        self,
        graph: Graph | str,
        primals: Tensors,
        *,
        of: Names | None = None,
        wrt: Names | None = None,
        device: str | None = None,
        seed: int | None = None,
        timeout: float | None = None,
    ) -> results.JacobianResult:
        """Outputs and whole Jacobians, by (output, input); the shape is the output's, then the input's.

        `of` names the outputs (default: every floating or complex one), `wrt` the inputs (default: every input that
        requires grad).
        """
        return self._call(requests.jacobian(graph, primals, of=of, wrt=wrt, device=device, seed=seed), timeout)

    def hessian(
        self,
        graph: Graph | str,
        primals: Tensors,
        cotangents: Tensors | None = None,
        *,
        wrt: Names | None = None,
        device: str | None = None,
        seed: int | None = None,
        timeout: float | None = None,
    ) -> results.HessianResult:
        """Outputs, first and second derivatives of the sum of <cotangent, output>.

        `hessian[(row, column)]` has the row's shape, then the column's. `cotangents` as in `vjp`.
        """
        return self._call(requests.hessian(graph, primals, cotangents, wrt=wrt, device=device, seed=seed), timeout)

    def hvp(
        self,
        graph: Graph | str,
        primals: Tensors,
        vectors: Tensors,
        cotangents: Tensors | None = None,
        *,
        wrt: Names | None = None,
        device: str | None = None,
        seed: int | None = None,
        timeout: float | None = None,
    ) -> results.HvpResult:
        """Outputs, first derivatives, and products of the Hessian with vectors, without making the Hessian.

        `vectors` holds a tensor of the input's shape for one input at least; the others stand still. `products` holds,
        for each input of `wrt`, the sum over columns of H[input, column] @ vector[column].
        """
        request = requests.hvp(graph, primals, vectors, cotangents, wrt=wrt, device=device, seed=seed)
        return self._call(request, timeout)

    def check(
        self,
        graph: Graph | str,
        primals: Tensors,
        *,
        claimed: Tensors | None = None,
        cotangents: Tensors | None = None,
        wrt: Names | None = None,
        order: int = 1,
        mode: str = "probe",
        forward_mode: bool = False,
        batched_gradients: bool = False,
        device: str | None = None,
        seed: int | None = 0,
        timeout: float | None = None,
    ) -> checks.CheckReport:
        """Judges gradients: whether they agree with numerical derivatives, how sure that is, and where they are wrong.

        On trial are autograd's own gradients, of every input that requires grad or of those in `wrt`; or those in
        `claimed`, by input, of the input's shape and dtype. They are gradients of the sum of <cotangent, output>, and
        `cotangents` are as in `vjp`; but where autograd's own are on trial and some output is no scalar, random
        cotangents stand in for none. Those that are not given are larger for outputs whose gradients are nothing beside
        the others'.

        `mode` is "probe" (a few random directions decide, and wrong elements are searched for) or "full" (every element
        of the Jacobian: at most 8192 numbers in an input on trial, and 2**26 products of such an input's numbers and
        the outputs'; a complex number is two). `order=2` checks gradients of gradients. `forward_mode` and
        `batched_gradients` check tangents, and pull-backs of several cotangents at once, too. `seed` decides every
        random choice.

        A wrong gradient is a verdict, not an exception: `report.verdict`, `report.inputs["x"].worst`, `print(report)`.
        """
        request = requests.check(
            graph,
            primals,
            claimed=claimed,
            cotangents=cotangents,
            wrt=wrt,
            order=order,
            mode=mode,
            forward_mode=forward_mode,
            batched_gradients=batched_gradients,
            device=device,
            seed=seed,
        )
        return self._call(request, timeout)

    def inspect(
        self,
        graph: Graph | str,
        primals: Tensors,
        *,
        device: str | None = None,
        seed: int | None = None,
        timeout: float | None = None,
    ) -> results.Inspection:
        """Shape, dtype and autograd state of every value of a graph, by name, after it ran under autograd."""
        return self._call(requests.inspect(graph, primals, device=device, seed=seed), timeout)

    def server_info(self, *, timeout: float | None = None) -> results.ServerInfo:
        """Version, torch, devices with their workers, and limits of the server."""
        return self._call(requests.server_info(), timeout)

    def operators(
        self, name_contains: str = "", *, include_refused: bool = False, timeout: float | None = None
    ) -> list[results.OperatorInfo]:
        """The operators that the server serves, each overload with its schema, by name.

        `include_refused` adds those that it refuses, with the reason.
        """
        return self._call(requests.operators(name_contains, include_refused=include_refused), timeout)

    # ---- Many at a time

    @overload
    def map(
        self,
        requests: Iterable[Request[R]],
        *,
        window: int = 64,
        ordered: bool = True,
        return_exceptions: Literal[False] = False,
        timeout: float | None = None,
    ) -> Iterator[R]: ...
    @overload
    def map(
        self,
        requests: Iterable[Request[R]],
        *,
        window: int = 64,
        ordered: bool = True,
        return_exceptions: bool,
        timeout: float | None = None,
    ) -> Iterator[R | GradOracleError]: ...
    def map(
        self,
        requests: Iterable[Request[R]],
        *,
        window: int = 64,
        ordered: bool = True,
        return_exceptions: bool = False,
        timeout: float | None = None,
    ) -> Iterator[R | GradOracleError]:
        """The results of many requests, made by `gradoracle.request`, over one stream.

        `requests` is read as far ahead as `window` says: that many are sent and not yet taken as results; fewer, one at
        the least, where their tensors come to 64 MiB. Results come in the order of the requests, or with
        `ordered=False` as they are ready; `result.tag` then tells which is which. A request that fails raises at its
        turn and ends the stream; with `return_exceptions` its exception takes the place of a result. One that the
        server has no room for waits for it, and a stream that breaks is resumed.
        `timeout` is for the whole stream; the client's own does not hold here.
        """
        conversation = stream.Conversation(window, ordered, return_exceptions, self._memory)
        return self._converse(iter(requests), conversation, channel.seconds(timeout))

    # ---- Calls

    def _call(self, request: Request[R], timeout: float | None) -> R:
        self._channels.check_open()
        timeout = self._target.seconds(timeout)
        began, left = time.monotonic(), timeout
        if self._memory is not None and self._memory.suits(request):
            for use in self._uses(self._memory, request, timeout, began):
                with use:
                    return self._in_memory(request, use, timeout, began)
            left = channel.left(timeout, began)
        if request.tensor_bytes > stream.UNARY_AT_MOST:
            return self._by_itself(request, timeout, left)
        if (found := self._direct.result(request, timeout, left)) is not None:
            return found
        return self._gathering.answer(request, timeout, channel.left(timeout, began), self._alone)

    def _uses(self, memory: Memory, request: Request[R], timeout: float | None, began: float) -> Iterator[Use]:
        try:
            yield from memory.attempts(request, math.inf if timeout is None else began + timeout)
        except TimeoutError:
            raise self._target.late(timeout) from None

    def _in_memory(self, request: Request[R], use: Use, timeout: float | None, began: float) -> R:
        if (found := self._direct.result(request, timeout, channel.left(timeout, began), use)) is not None:
            return found
        data = self._channels.unary(request.method, b"".join(use.pieces), timeout, channel.left(timeout, began))
        response = request.method.response(data)
        return request.method.read(response, use.answered(response))

    def _alone(self, request: Request[R], timeout: float | None, left: float | None) -> R:
        began = time.monotonic()
        try:
            data = self._channels.unary(request.method, request.to_bytes(), timeout, left)
        except ResourceLimitError as error:
            if not stream.bears(error):
                raise
        else:
            return request.method.answer(data)
        return self._by_itself(request, timeout, channel.left(left, began))

    def _by_itself(self, request: Request[R], timeout: float | None, left: float | None) -> R:
        """A call's result over a stream of its own."""
        (result,) = self._channels.converse(iter((request,)), stream.Conversation(window=1), timeout, left)
        return result

    def _converse(
        self, waiting: Iterator[Request[R]], conversation: stream.Conversation, timeout: float | None
    ) -> Iterator[R]:
        # A generator of the client's own, which keeps the client, and a private server, while results are taken.
        yield from self._channels.converse(waiting, conversation, timeout, timeout)

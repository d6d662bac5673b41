"""What cross_entropy, linear_cross_entropy and linear_log_prob keep to when torch differentiates, traces or shards."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import mrtkern
from mrtkern import _check
from mrtkern.ops.linear_cross_entropy.problem import Problem
from tests.tools import oracle
from tests.tools.linear_heads import every_backend

T, D, V = 12, 5, 9
OFFSETS = torch.tensor([0, 3, 3, 12])
PROMPT = torch.tensor([4, 4, -1])


def tensors() -> dict[str, Tensor]:
    """Ignored targets, weights of 0 and of both signs, and the logits of the head beside it."""
    inputs = Problem(T, D, V, *(torch.float32,) * 3, ignored=0.2, needs=(False, False, False)).make_inputs()
    inputs["token_weight"][::3] *= -1
    inputs["token_weight"][::4] = 0
    return {**inputs, "logits": inputs["hidden"] @ inputs["weight"].T}


def of_logits(**given: Any) -> Any:
    names = ("logits", "targets", "token_weight")
    return mrtkern.cross_entropy(**{name: given[name] for name in names}, label_smoothing=0.1)


def of_a_head(**given: Any) -> Any:
    names = ("hidden", "weight", "targets", "token_weight")
    return mrtkern.linear_cross_entropy(**{name: given[name] for name in names}, label_smoothing=0.1)


def log_prob(**given: Any) -> Any:
    logp, entropy = mrtkern.linear_log_prob(given["hidden"], given["weight"], given["targets"])
    return (logp * given["token_weight"]).sum() + entropy.sum()


LOSS_OPTIONS = ("label_smoothing", "z_loss", "softcap")


def head_of(given: dict[str, Tensor]) -> tuple[Tensor, ...]:
    return given["hidden"], given["weight"], given["targets"]


FUNCTIONS: dict[Callable[..., Any], tuple[str, ...]] = {  # and what each of them differentiates
    of_logits: ("logits",),
    of_a_head: ("hidden", "weight"),
    log_prob: ("hidden", "weight"),
}
every_function = pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)


# Differentiation


@every_function
def test_forward_mode_is_refused_not_taken_for_a_derivative_of_zero(function: Callable[..., Any]) -> None:
    for name in FUNCTIONS[function]:
        given = tensors()
        with pytest.raises(RuntimeError, match=f"{name} must be differentiated by backward, got a tangent"):
            torch.func.jvp(
                lambda x, given=given, name=name: function(**{**given, name: x}), (given[name],), (given[name],)
            )
        with forward_ad.dual_level(), pytest.raises(RuntimeError, match="got a tangent of forward mode"):
            function(**{**given, name: forward_ad.make_dual(given[name], given[name])})


@every_function
def test_functional_gradients_are_refused(function: Callable[..., Any]) -> None:
    for name in FUNCTIONS[function]:
        given = tensors()
        sentence = f"^[a-z_]+: {name} must be differentiated by backward, got a transform of torch.func$"
        with pytest.raises(RuntimeError, match=sentence):
            torch.func.grad(lambda x, given=given, name=name: function(**{**given, name: x}))(given[name])


def transforms(function: Callable[..., Any], x: Tensor) -> dict[str, Callable[[Tensor], Any]]:
    """Of torch.func, each with its gradient of x."""
    return {
        "grad": torch.func.grad(function),
        "vjp": lambda x: torch.func.vjp(function, x)[1](torch.ones(())),
        "jvp": lambda x: torch.func.jvp(function, (x,), (x,)),
        "vmap of grad": lambda x: torch.func.vmap(torch.func.grad(function))(x[None]),
        "grad of vmap": torch.func.grad(lambda x: torch.func.vmap(function)(x[None]).sum()),
    }


@pytest.mark.full
@every_function
def test_compiled_functional_gradients_are_refused_not_zero(function: Callable[..., Any]) -> None:
    for number, name in enumerate(FUNCTIONS[function]):
        given = tensors()
        ways = transforms(lambda x, given=given, name=name: function(**{**given, name: x}), given[name])
        for transform in list(ways.values())[: None if number == 0 else 1]:  # a compilation takes a second
            torch._dynamo.reset()
            with pytest.raises(RuntimeError, match=f"^[a-z_]+: {name} must be differentiated by backward, got a t"):
                torch.compile(transform, backend="eager")(given[name])
        torch._dynamo.reset()
        with pytest.raises(torch._dynamo.exc.TorchDynamoException):
            torch.compile(transform, backend="eager", fullgraph=True)(given[name])


@every_function
def test_a_batch_of_gradients_is_one_after_the_other(function: Callable[..., Any]) -> None:
    factors = torch.tensor([1.0, -2.0, 0.0])
    leaves = [tensors()[name].requires_grad_() for name in FUNCTIONS[function]]
    loss = function(**{**tensors(), **dict(zip(FUNCTIONS[function], leaves, strict=True))})
    batched = torch.autograd.grad(loss, leaves, factors, is_grads_batched=True, retain_graph=True)
    mapped = torch.func.vmap(lambda v: torch.autograd.grad(loss, leaves, v, retain_graph=True))(factors)
    alone = [torch.autograd.grad(loss, leaves, v, retain_graph=True) for v in factors[: 1 if len(leaves) == 1 else 3]]
    for i, gradients in enumerate(alone):
        for both in (batched, mapped):
            assert all(torch.equal(got[i], value) for got, value in zip(both, gradients, strict=True))
    for got, again in zip(batched, mapped, strict=True):
        assert torch.equal(got, again)
        assert torch.equal(got[1], -2 * got[0])


@every_function
def test_two_backwards_add_up_whatever_their_factors(function: Callable[..., Any]) -> None:
    """A gradient that was handed out is its receiver's: autograd adopts it and adds to it."""
    names = FUNCTIONS[function]
    once = [tensors()[name].requires_grad_() for name in names]
    function(**{**tensors(), **dict(zip(names, once, strict=True))}).backward()
    for factor in (0.5, 1.0, 4.0):
        leaves = [tensors()[name].requires_grad_() for name in names]
        loss = function(**{**tensors(), **dict(zip(names, leaves, strict=True))})
        loss.backward(retain_graph=True)
        (factor * loss).backward()
        for leaf, alone in zip(leaves, once, strict=True):
            assert torch.equal(leaf.grad, alone.grad + factor * alone.grad)


@every_function
def test_gradients_of_two_backwards_share_no_memory(function: Callable[..., Any]) -> None:
    names = FUNCTIONS[function]
    leaves = [tensors()[name].requires_grad_() for name in names]
    loss = function(**{**tensors(), **dict(zip(names, leaves, strict=True))})
    first, second = (torch.autograd.grad(loss, leaves, retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) and a.data_ptr() != b.data_ptr() for a, b in zip(first, second, strict=True))


@every_function
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointed_gradients_are_the_gradients(use_reentrant: bool, function: Callable[..., Any]) -> None:
    names = FUNCTIONS[function]
    leaves = [tensors()[name].requires_grad_() for name in names]

    def call(*values: Tensor) -> Tensor:
        return function(**{**tensors(), **{name: 2 * value for name, value in zip(names, values, strict=True)}})

    checkpoint(call, *leaves, use_reentrant=use_reentrant).backward()
    expected = torch.autograd.grad(call(*leaves), leaves)
    assert all(torch.equal(leaf.grad, d) for leaf, d in zip(leaves, expected, strict=True))


@every_function
def test_inference_mode_runs_without_gradients(function: Callable[..., Any]) -> None:
    with torch.inference_mode():
        found = function(**tensors())
    assert torch.equal(found.clone(), function(**tensors()))


@every_backend
def test_a_second_backward_of_a_head_is_the_first_with_details_too(backend: str) -> None:
    """Details read rows of weight 0 as well, so chunks hold other rows: those of the first pass must come again."""
    given = tensors()
    given["token_weight"] = given["token_weight"] * (torch.arange(T) > 9)
    leaves = [given[name].requires_grad_() for name in ("hidden", "weight")]
    inputs = {name: given[name] for name in ("hidden", "weight", "targets", "token_weight")}
    details = {"return_details": True, "offsets": OFFSETS, "prompt": PROMPT}
    loss = mrtkern.linear_cross_entropy(**inputs, **details, backend=backend).loss
    first, second = (torch.autograd.grad(loss * 3, leaves, retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


# Tracing


@every_function
def test_one_graph_serves_every_number_of_tokens(function: Callable[..., Any]) -> None:
    torch._dynamo.reset()
    names, graphs = FUNCTIONS[function], []

    def count(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph

    compiled = torch.compile(lambda **given: 3 * function(**given), fullgraph=True, dynamic=True, backend=count)
    for rows in (T, 7, 5):
        given = {name: value if name == "weight" else value[:rows].clone() for name, value in tensors().items()}
        given |= {name: given[name].clone().requires_grad_() for name in names}
        leaves = [given[name] for name in names]
        found, expected = compiled(**given), 3 * function(**given)
        oracle.assert_summed(found.detach(), expected.detach().double(), 1, 0.0)
        for got, value in zip(torch.autograd.grad(found, leaves), torch.autograd.grad(expected, leaves), strict=True):
            assert torch.equal(got, value)
    assert len(graphs) == 1


@every_function
def test_parameters_stay_in_the_graph(function: Callable[..., Any]) -> None:
    torch._dynamo.reset()
    given = {**tensors(), **{name: torch.nn.Parameter(tensors()[name]) for name in FUNCTIONS[function]}}
    leaves = [given[name] for name in FUNCTIONS[function]]
    compiled = torch.compile(lambda **given: 3 * function(**given), fullgraph=True, backend="aot_eager")
    found, expected = compiled(**given), 3 * function(**given)
    for got, value in zip(torch.autograd.grad(found, leaves), torch.autograd.grad(expected, leaves), strict=True):
        assert torch.equal(got, value)


@torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True)  # without it torch 2.6 breaks the graph
def test_one_graph_holds_the_module_and_its_details() -> None:
    torch._dynamo.reset()
    given = tensors()
    crit = mrtkern.MultiResponseCrossEntropyLoss("prompt", return_details=True)

    def function(logits: Tensor, targets: Tensor, offsets: Tensor, prompt: Tensor) -> Tensor:
        found = crit(logits, targets, offsets=offsets, prompt=prompt)
        return found.loss + found.prompt_loss.sum() + found.entropy

    arguments = (given["logits"].requires_grad_(), given["targets"], OFFSETS, PROMPT)
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    assert torch.equal(compiled(*arguments), function(*arguments))


def with_gradients(function: Callable[..., Any], given: dict[str, Tensor]) -> list[Tensor]:
    """Three times the loss and its gradients."""
    leaves = {name: given[name].clone().requires_grad_() for name in FUNCTIONS[function]}
    loss = 3 * function(**{**given, **leaves})
    return [loss, *torch.autograd.grad(loss, list(leaves.values()))]


@every_function
@pytest.mark.parametrize("tracing_mode", ["real", "fake", "symbolic"])
def test_make_fx_records_the_gradient(tracing_mode: str, function: Callable[..., Any]) -> None:
    names, given = list(tensors()), tensors()
    graph = make_fx(
        lambda *values: with_gradients(function, dict(zip(names, values, strict=True))), tracing_mode=tracing_mode
    )(*given.values())
    given |= {name: 2 * given[name] for name in FUNCTIONS[function]}  # others than those that were recorded
    for got, value in zip(graph(*given.values()), with_gradients(function, given), strict=True):
        assert torch.equal(got, value)


@every_function
def test_tensors_without_values_have_shapes_and_gradients(function: Callable[..., Any]) -> None:
    expected = [(value.shape, value.dtype) for value in with_gradients(function, tensors())]
    found = with_gradients(function, {name: value.to("meta") for name, value in tensors().items()})
    assert [(value.shape, value.dtype) for value in found] == expected
    assert {value.device.type for value in found} == {"meta"}
    with FakeTensorMode() as mode:
        found = with_gradients(function, {name: mode.from_tensor(value) for name, value in tensors().items()})
    assert [(value.shape, value.dtype) for value in found] == expected


class Watching(TorchDispatchMode):
    """Records nothing, as modes that count operations or measure memory."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


@every_function
def test_modes_that_only_watch_change_nothing(function: Callable[..., Any]) -> None:
    expected = with_gradients(function, tensors())
    with Watching():
        assert not _check.is_traced(torch.ones(1))
        found = with_gradients(function, tensors())
    assert all(torch.equal(got, value) for got, value in zip(found, expected, strict=True))
    with Watching(), FakeTensorMode():
        assert _check.is_traced(torch.ones(1))


def test_inplace_overwrites_also_under_a_mode_that_watches() -> None:
    given = tensors()
    expected = with_gradients(of_logits, given)[1]
    leaf = given["logits"].requires_grad_()
    with Watching():
        logits = leaf * 1
        loss = mrtkern.cross_entropy(
            logits, given["targets"], token_weight=given["token_weight"], label_smoothing=0.1, inplace=True
        )
        (own,) = torch.autograd.grad(3 * loss, logits)
    assert own.data_ptr() == logits.data_ptr()
    assert torch.equal(logits, expected)


@every_function
def test_jit_traces_serve_every_number_of_tokens(function: Callable[..., Any]) -> None:
    names, given = list(tensors()), tensors()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sizes that are compared in Python become constants
        traced = torch.jit.trace(
            lambda *values: function(**dict(zip(names, values, strict=True))), tuple(given.values())
        )
    for rows in (T, 7):
        cut = {name: value if name == "weight" else value[:rows] for name, value in given.items()}
        assert torch.equal(traced(*cut.values()), function(**cut))
    given = {name: value.requires_grad_(name in FUNCTIONS[function]) for name, value in given.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sentence = "^[a-z_]+: [a-z]+ must be traced by torch.jit.trace under torch.no_grad\\(\\), got one that requires"
        with pytest.raises(ValueError, match=sentence):
            torch.jit.trace(lambda *values: function(**dict(zip(names, values, strict=True))), tuple(given.values()))


@every_function
def test_options_that_ask_for_a_gradient_are_refused(function: Callable[..., Any]) -> None:
    given, parameter = tensors(), torch.nn.Parameter(torch.tensor(0.5))
    calls = {
        of_logits: (lambda **more: mrtkern.cross_entropy(given["logits"], given["targets"], **more), LOSS_OPTIONS),
        of_a_head: (lambda **more: mrtkern.linear_cross_entropy(*head_of(given), **more), LOSS_OPTIONS),
        log_prob: (lambda **more: mrtkern.linear_log_prob(*head_of(given), **more), ("softcap", "temperature")),
    }
    call, names = calls[function]
    for name in names:
        with pytest.raises(ValueError, match=f"^[a-z_]+: {name} must not require a gradient, because it gets none"):
            call(**{name: parameter})
        call(**{name: parameter.detach()})


# Tensors that are no ordinary ones


@pytest.fixture
def alone() -> Any:
    """A process group of this process."""
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("gloo", init_method=f"file://{os.path.join(folder, 'store')}", rank=0, world_size=1)
        yield dist.group.WORLD
        dist.destroy_process_group()


@every_function
def test_tensors_of_several_processes_are_refused_with_the_mend(function: Callable[..., Any], alone: Any) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (1,))
    for name in {*FUNCTIONS[function], "targets"} - {"weight"}:
        for placement in (Replicate(), Shard(0)):
            given = tensors()
            given[name] = distribute_tensor(given[name], mesh, [placement])
            mend = rf"pass {name}\.full_tensor\(\) or {name}\.to_local\(\), got a DTensor placed"
            with pytest.raises(ValueError, match=f"{name} must be of this process alone: {mend}"):
                function(**given)
    logits = distribute_tensor(tensors()["logits"], mesh, [Shard(1)])
    with pytest.raises(ValueError, match=r"^vocabulary_parallel_cross_entropy: logits must be of this process alone"):
        mrtkern.vocabulary_parallel_cross_entropy(logits, tensors()["targets"], first_class=0, process_group=alone)


@every_function
def test_sparse_and_nested_tensors_are_refused(function: Callable[..., Any]) -> None:
    for name in FUNCTIONS[function]:
        given = tensors()
        nested = torch.nested.nested_tensor([given[name]], layout=torch.jagged)
        for value in (given[name].to_sparse(), given[name].to_sparse_csr(), nested):
            with pytest.raises(ValueError, match=f"{name} must be dense, got (torch.sparse|a nested tensor)"):
                function(**{**given, name: value})


@every_function
def test_negated_views_are_read_as_what_they_mean(function: Callable[..., Any]) -> None:
    given = tensors()
    views = {name: torch._neg_view(-given[name]) for name in (*FUNCTIONS[function], "token_weight", "targets")}
    assert all(view.is_neg() for view in views.values())
    assert torch.equal(function(**{**given, **views}), function(**given))

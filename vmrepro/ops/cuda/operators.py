"""Functions registered as torch operators, so that autograd, torch.compile and CUDA graphs see a call and not its inside."""

from collections.abc import Callable

import torch

NAMESPACE = "vmrepro"


def operator(fake: Callable, mutates: tuple[str, ...] = ()) -> Callable[[Callable], Callable]:
    """A decorator that makes a function the operator ``vmrepro::<its name>`` and returns the operator.

    fake: the same function on shapes alone. mutates: names of the arguments that are written to. The annotations give the
    schema; results must not share memory with arguments.
    ``torch.library.custom_op`` does the same and checks each call for that, at a cost on the host that small inputs feel.
    """

    def register(function: Callable) -> Callable:
        name = f"{NAMESPACE}::{function.__name__}"
        torch.library.define(name, torch.library.infer_schema(function, mutates_args=mutates))
        torch.library.impl(name, "default", function)
        torch.library.register_fake(name, fake)
        return getattr(getattr(torch.ops, NAMESPACE), function.__name__).default

    return register


def differentiable(op: Callable, backward: Callable, setup: Callable) -> None:
    """Give an operator its backward pass; ``setup(ctx, inputs, output)`` saves what ``backward(ctx, *gradients)`` needs."""
    torch.library.register_autograd(op, backward, setup_context=setup)

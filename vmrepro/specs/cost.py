"""Parameters, multiply-adds, training memory and training cost of a spec in closed form (no torch).

Letters, as in section 3 of the paper where it has one:

    d    embedding width (the paper's C)
    E    inner width of the mixer, expand · d
    L    tokens, class token included
    N    state size
    R    rank of the projection that gives Δ

Costs are in the unit of the paper's FLOPs columns: a multiply-add of a product or a convolution counts as one, and so does
each of the operations granted to norms and scan. Against the FLOP/s of a device, double all but those two.
"""

from __future__ import annotations

from vmrepro.specs.schema import ModelSpec

# What the counter behind the paper's columns sees. The rest of a block runs inside one opaque function.
SEEN_BY_THE_PAPER = ("patch_embed", "in_proj", "out_proj", "norms", "classifier")
NORM_OPS = 5  # per element of a norm with weights, as fvcore counts it
SCAN_OPS = 9  # per token, inner channel and state (state-spaces/mamba, issue 110)
TRAINING_FACTOR = 3  # forward, and a backward of twice its cost


def _directions(spec: ModelSpec) -> int:
    return 2 if spec.bidirectional else 1


def scans(spec: ModelSpec) -> int:
    """Scans of the sequence in one block: one for each direction, and for each order where both orders are run in full."""
    return _directions(spec) * (2 if spec.scan == "spatiotemporal_v2" else 1)


def _patch_values(spec: ModelSpec) -> int:
    """Numbers in one patch or tubelet."""
    return spec.in_chans * spec.kernel_size * spec.patch_size**2


def parameters(spec: ModelSpec) -> int:
    """The exact number of trained parameters of the model built from ``spec``, a student's extra head included.

    Directions share the input and output projection; convolution, ``x_proj``, ``dt_proj``, A and D are each direction's own
    (released code, ``mamba_simple.py``). A LayerNorm has a bias, an RMSNorm none.
    """
    d, E, N, R = spec.embed_dim, spec.inner_dim, spec.d_state, spec.step_rank
    norm = d if spec.norm == "rms" else 2 * d
    convolution = E * spec.d_conv + E
    direction = convolution + E * (R + 2 * N) + (R * E + E) + E * N + E
    block = norm + 2 * E * d + _directions(spec) * direction + E * d
    height, width = spec.grid_hw
    embedding = _patch_values(spec) * d + d + d + (1 + height * width) * d
    if spec.num_frames is not None:
        embedding += spec.time_steps * d
    head = d * spec.num_classes + spec.num_classes
    if spec.distill_dim is not None:
        head += norm + d * spec.distill_dim + spec.distill_dim
    return embedding + spec.depth * block + norm + head


def flops_parts(spec: ModelSpec) -> dict[str, int]:
    """Multiply-adds of one forward pass of one image or clip, by part.

    Keys: patch_embed, in_proj, out_proj, norms, classifier, conv1d, x_proj, dt_proj, scan, skip_and_gate (D·u, and the product
    with the gate) and, in a student, distill_head. Biases, activations, residual and position additions are not counted.
    Permuting tokens between scan orders moves bytes and multiplies nothing.
    """
    d, E, L, N, R = spec.embed_dim, spec.inner_dim, spec.length, spec.d_state, spec.step_rank
    mixed = spec.depth * L * d * E
    scanned = spec.depth * scans(spec) * L * E  # channel steps in all blocks
    parts = {
        "patch_embed": (L - 1) * _patch_values(spec) * d,
        "in_proj": 2 * mixed,
        "out_proj": mixed,
        "norms": (spec.depth + 1) * L * NORM_OPS * d,
        "classifier": d * spec.num_classes,
        "conv1d": scanned * spec.d_conv,
        "x_proj": scanned * (R + 2 * N),
        "dt_proj": scanned * R,
        "scan": scanned * SCAN_OPS * N,
        "skip_and_gate": scanned * 2,
    }
    if spec.distill_dim is not None:
        parts["distill_head"] = L * (NORM_OPS * d + d * spec.distill_dim)
    return parts


def flops_paper(spec: ModelSpec) -> int:
    """Multiply-adds as the paper prints them (Tables 2 to 4): of one view, without the convolution, the scan and what feeds it.

    Norms count, with 5 per element. Only so do 32 of the 34 own rows come out exactly after rounding; without norms it is 20.
    The two that differ are errata E01 (t3_21) and E13 (t2_27). Whether the final norm counts too, no row can tell. All scan
    orders come out the same, ``spatiotemporal_v2`` too: what it doubles is what is left out.
    """
    parts = flops_parts(spec)
    return sum(parts[name] for name in SEEN_BY_THE_PAPER)


def flops_full(spec: ModelSpec) -> int:
    """Multiply-adds of one forward pass with everything in :func:`flops_parts`, a student's extra head included."""
    return sum(flops_parts(spec).values())


def activation_bytes(spec: ModelSpec, batch: int, element_bytes: int = 4) -> int:
    """An estimate of what the blocks keep for the backward pass, in bytes, for ``batch`` images or clips.

    Per token and block: the residual stream in float32 (d); in ``element_bytes`` each, the normalised input (d), both halves of
    the input projection (2E, once more in the other order where a block runs both), the gated sum (E), and in each scan the
    convolved input, Δ and the scan's output (3E) with the low-rank Δ, B and C (R + 2N). States are taken to be recomputed.
    Weights, gradients, optimiser, embedding and head are left out, and so is what an allocator adds. Good for the order of
    magnitude (what the chunked backend keeps is within a factor of three, as a test checks) and for ratios between specs.
    """
    d, E = spec.embed_dim, spec.inner_dim
    scan = 3 * E + spec.step_rank + 2 * spec.d_state
    projected = 4 * E if spec.scan.startswith("spatiotemporal") else 2 * E
    per_token = 4 * d + element_bytes * (d + projected + E + scans(spec) * scan)
    return batch * spec.length * spec.depth * per_token


def train_cost(model: ModelSpec, images: int, epochs: int) -> int:
    """Multiply-adds of a training of ``epochs`` passes over ``images`` images or clips, forward and backward.

    Three times :func:`flops_full` each. A teacher's forward pass is not in it: add images · epochs · flops_full(teacher).
    """
    return TRAINING_FACTOR * flops_full(model) * images * epochs

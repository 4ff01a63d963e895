"""Parameters and multiply-adds of the models that the paper compares with, counted by building them on PyTorch's meta device.

A meta tensor has a shape and no memory, so a model of 300 M parameters is built and run in a fraction of a second. Counted, by
``torch.utils.flop_counter``, are matrix products and convolutions, one per multiply-add, the products inside attention
included: on the meta device fused attention falls into plain products that the counter sees, on a CPU it would be missed.
Norms, activations, softmax, biases, pooling and position additions are not counted. The paper's own rows, which count norms
too, are in :mod:`vmrepro.specs.cost`.

Of a library only what a row needs is imported, and only when a row is counted. timm and torchvision belong to the package;
transformers is the extra "peers".
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vmrepro.models.peers_table import ABSENT, ARCHITECTURES, BUILT, Architecture, Match
from vmrepro.paper import reference

CLASSES = {"ImageNet-1K": 1000, "K400": 400, "SSV2": 174}
KINETICS = 400
COARSEST = 32  # pixels: every network here divides its input by a divisor of it
INSTALL = "pip install -c environment/lock.txt -e '.[peers]'"
# Linear layers and convolutions come as other operations, so batched products are those of attention (and, in MViTv2, those of
# its relative positions). A test compares them with the closed form.
ATTENTION = (torch.ops.aten.bmm, torch.ops.aten.baddbmm)


@dataclass(frozen=True)
class Peer:
    """A printed row that is not the paper's own model: what is built for it, at which input, and how well that fits.

    library, builder: None where nothing builds it; ``note`` then says why. frames, size: the printed input (frames, pixels a
    side), or the one taken where none is printed. classes: outputs of the head. match: "exact" is the published network,
    "nearest" differs as ``note`` says, "none" has no builder. fits: frames and size at which the printed cost comes out, where
    the printed input cannot have it. views: crops times clips of the test, None where none are printed.
    """

    row_id: str
    place: str
    library: str | None
    builder: str | None
    frames: int | None
    size: int | None
    classes: int
    match: Match
    note: str
    fits: tuple[int, int] | None
    views: int | None


@dataclass(frozen=True)
class Count:
    """What one model has and does: parameters, and multiply-adds of one view, of which ``attention_macs`` inside attention.

    library and version: what built it. seconds: what building and counting took when it was done, with the import of the library
    if it was the first of that library. views: as in :class:`Peer`.
    """

    params: int
    macs: int
    attention_macs: int
    library: str
    version: str
    seconds: float
    views: int | None = None

    @property
    def total_macs(self) -> int | None:
        """Multiply-adds of all views of the test; None where the paper prints no views."""
        return None if self.views is None else self.macs * self.views


def count(row_id: str, *, frames: int | None = None, size: int | None = None) -> Count:
    """Parameters and multiply-adds of the model of a row, counted now, at the row's input or at another.

    frames: at least 1, and 1 for an image model; size: pixels a side, a multiple of 32. A configuration is built once in a
    process. Raises ValueError for an unknown row, for a row that nothing builds (with the reason), for one whose library is not
    installed (with what to install), and for an input that the model cannot have.
    """
    if (reason := absence(row_id)) is not None:
        raise ValueError(f"{row_id} ({PEERS[row_id].place}) is not counted: {reason}")
    peer = PEERS[row_id]
    at = (peer.frames if frames is None else frames, peer.size if size is None else size)
    return replace(_measure(BUILT[row_id].architecture, *at, peer.classes), views=peer.views)


def counts(table: str) -> list[tuple[Peer, Count | None]]:
    """Every peer of a table ("table2", "table3", "table4", "table6", "table8") with its count, in printed order.

    None stands for a row that cannot be counted here; :func:`absence` says why. Raises ValueError for another table.
    """
    if table not in TABLES:
        raise reference.unknown("table of peers", table, TABLES)
    rows = {row.values["row_id"] for row in reference.table(table)}
    return [(peer, None if absence(peer.row_id) else count(peer.row_id)) for peer in PEERS.values() if peer.row_id in rows]


def absence(row_id: str) -> str | None:
    """Why a row cannot be counted here: nothing builds its model, or what does is not installed. None where it can.

    Raises ValueError for a row that is not of a peer.
    """
    if row_id not in PEERS:
        raise reference.unknown("peer", row_id, PEERS)
    library = PEERS[row_id].library
    if library is None:
        return PEERS[row_id].note
    if importlib.util.find_spec(library) is None:
        return f"it is built by {library}, which is not installed: {INSTALL}"
    return None


def _peer(row: reference.Row) -> Peer:
    row_id, values = str(row.values["row_id"]), row.values
    built = BUILT.get(row_id)
    architecture = ARCHITECTURES[built.architecture] if built else None
    frames, size = built.taken if built and built.taken else (values.get("input_frames"), values.get("input_size"))
    return Peer(
        row_id=row_id,
        place=row.place if row.id == row_id else f"{row.table.replace('table', 'Table ')}, {values['method']}",
        library=architecture.library if architecture else None,
        builder=_builder(architecture) if architecture else None,
        frames=frames,
        size=size,
        classes=CLASSES[str(values["dataset"])] if "params_m" in values else KINETICS,
        match=built.match if built else "none",
        note=built.note if built else ABSENT[row_id],
        fits=built.fits if built else None,
        views=values.get("views_total", 1) if "params_m" in values else None,
    )


def _builder(architecture: Architecture) -> str:
    options = ", ".join(f"{name}={value}" for name, value in architecture.options.items())
    return f"{architecture.library} {architecture.constructor}" + (f"({options})" if options else "")


TABLES = ("table2", "table3", "table4", "table6", "table8")
# By row id, in printed order. Table 8 spreads a printed row over its data sets; a peer stands for all of them.
PEERS: Mapping[str, Peer] = MappingProxyType(
    {str(row.values["row_id"]): _peer(row) for table in TABLES for row in reference.table(table) if not row.values["is_ours"]}
)


@functools.cache
def _measure(name: str, frames: int, size: int, classes: int) -> Count:
    """The count of one network at one input; kept, since rows share theirs."""
    architecture = ARCHITECTURES[name]
    if frames < 1 or size < COARSEST or size % COARSEST:
        raise ValueError(f"{name} needs at least one frame of a multiple of {COARSEST} pixels; got {frames} of {size}")
    build = {"timm": _timm, "torchvision": _torchvision, "transformers": _transformers}[architecture.library]
    start = time.perf_counter()
    with torch.device("meta"), torch.no_grad():
        model, x = build(architecture, frames, size, classes)
        with FlopCounterMode(display=False) as counter:
            model.eval()(x)
    flops = counter.get_flop_counts()["Global"]
    return Count(
        params=sum(parameter.numel() for parameter in model.parameters()),
        macs=sum(flops.values()) // 2,
        attention_macs=sum(flops.get(operation, 0) for operation in ATTENTION) // 2,
        library=architecture.library,
        version=importlib.metadata.version(architecture.library),
        seconds=time.perf_counter() - start,
    )


def _timm(architecture: Architecture, frames: int, size: int, classes: int) -> tuple[nn.Module, Tensor]:
    import timm

    _refuse_clips(architecture, frames)
    # A convolution takes any input; the others hold positions or windows of one.
    sized = {} if architecture.constructor.startswith("convnext") else {"img_size": size}
    model = timm.create_model(architecture.constructor, num_classes=classes, **sized, **architecture.options)
    return model, torch.empty(1, 3, size, size)


def _torchvision(architecture: Architecture, frames: int, size: int, classes: int) -> tuple[nn.Module, Tensor]:
    from torchvision.models import video

    if architecture.constructor == "MViT":
        model = _mvit(**architecture.options, frames=frames, size=size, classes=classes)
    else:
        model = getattr(video, architecture.constructor)(num_classes=classes, **architecture.options)
    return model, torch.empty(1, 3, frames, size, size)


def _transformers(architecture: Architecture, frames: int, size: int, classes: int) -> tuple[nn.Module, Tensor]:
    import transformers

    network = getattr(transformers, architecture.constructor)
    options = {"image_size": size, "num_labels": classes, **architecture.options}
    if "Video" in architecture.constructor:
        return network(network.config_class(num_frames=frames, **options)), torch.empty(1, frames, 3, size, size)
    _refuse_clips(architecture, frames)
    return network(network.config_class(**options)), torch.empty(1, 3, size, size)


def _refuse_clips(architecture: Architecture, frames: int) -> None:
    if frames != 1:
        raise ValueError(f"{architecture.constructor} is an image model and takes 1 frame, not {frames}")


def _mvit(*, version: int, depth: int, pooled: tuple[int, ...], frames: int, size: int, classes: int) -> nn.Module:
    """torchvision's MViT of version 1 or 2 at any length; its own constructors offer one length and two of the sizes.

    Queries are pooled by 2 x 2 before the blocks in ``pooled``, where heads double and the pooling of keys and values halves.
    The width doubles in that block in version 2, and at the end of the block before it in version 1.
    """
    from torchvision.models.video.mvit import MSBlockConfig, MViT

    second, kernel = version == 2, [3, 3, 3]
    blocks, width, heads, stride = [], 96, 1, 8
    for block in range(depth):
        if block in pooled:
            heads, stride = heads * 2, stride // 2
        wider = width * 2 if (block if second else block + 1) in pooled else width
        query_stride = [1, 2, 2] if block in pooled else [1, 1, 1] if second else []
        query_kernel = kernel if query_stride else []
        blocks.append(MSBlockConfig(heads, width, wider, query_kernel, kernel, query_stride, [1, stride, stride]))
        width = wider
    return MViT(
        spatial_size=(size, size),
        temporal_size=frames,
        block_setting=blocks,
        residual_pool=second,
        residual_with_cls_embed=False,
        rel_pos_embed=second,
        proj_after_attn=second,
        num_classes=classes,
    )

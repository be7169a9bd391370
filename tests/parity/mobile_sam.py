"""MobileSAM's own code, without what its package imports and the model does not need."""

import importlib
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import torch

_UNUSED = {
    "timm.models.layers": {
        "DropPath": torch.nn.Identity,
        "to_2tuple": lambda value: (value, value),
        "trunc_normal_": torch.nn.init.trunc_normal_,
    },
    "timm.models.registry": {"register_model": lambda function: function},
}
"""What TinyViT's file takes of timm; the mirror on PyPI does not ask for it."""


def mobile_sam_modeling() -> types.ModuleType:
    """MobileSAM's `mobile_sam.modeling`, without its package, which needs torchvision."""
    if "mobile_sam" not in sys.modules:
        location: Any = importlib.util.find_spec("mobile_sam")
        parent = types.ModuleType("mobile_sam")
        parent.__path__ = [str(Path(location.origin).parent)]
        sys.modules["mobile_sam"] = parent
    added = [name for name in ("timm", "timm.models", *_UNUSED) if name not in sys.modules]
    for name in added:
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update(_UNUSED.get(name, {}))
    try:
        return importlib.import_module("mobile_sam.modeling")
    finally:
        for name in added:
            del sys.modules[name]


def random_mobile_sam(widths=(64, 128, 160, 320), seed=0) -> torch.nn.Module:
    """MobileSAM as `build_sam_vit_t` makes it, all of it random, statistics of batch norms too."""
    modeling = mobile_sam_modeling()
    torch.manual_seed(seed)
    sam = modeling.Sam(
        modeling.TinyViT(
            img_size=1024,
            embed_dims=list(widths),
            depths=[2, 2, 6, 2],
            num_heads=[2, 4, 5, 10],
            window_sizes=[7, 7, 14, 7],
            drop_path_rate=0.0,
            layer_lr_decay=0.8,
        ),
        modeling.PromptEncoder(256, (64, 64), (1024, 1024), 16),
        modeling.MaskDecoder(
            transformer_dim=256,
            transformer=modeling.TwoWayTransformer(2, 256, 8, 2048),
        ),
    )
    with torch.no_grad():
        for name, weight in [*sam.named_parameters(), *sam.named_buffers()]:
            if name.endswith("running_var") or ".bn.weight" in name:
                weight.copy_(0.5 + torch.rand_like(weight))
            elif name.endswith(("running_mean", "bias", "attention_biases")):
                weight.add_(0.3 * torch.randn_like(weight))
    return sam.train().eval()  # from train to eval it looks its attention biases up anew

"""What wraps or replaces a layer acts: adapters, hooks, pruned and quantised layers and others."""

import copy
import warnings

import peft
import pytest
import torch
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn import functional as F
from torch.nn.utils import parametrize, prune
from torch.testing import assert_close

from segment_anything_transformers import SegmentAnythingModel
from segment_anything_transformers.model.layers import is_plain, linear, vectors
from tests import forms
from tests.fake_backend import small_config
from tests.tiny import random_images, random_model, random_prompts

LINEARS = 5
"""Every so many linear layers one is changed, in all parts of the model."""


def adapted(model, **options):
    with warnings.catch_warnings():
        # peft 0.21 asks transformers for it by the old name.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")
        return peft.get_peft_model(model, peft.LoraConfig(**options))


def outputs_of(model):
    """Logits, scores and embeddings without gradients, and whether the fast decoder made them."""
    base = model.get_base_model() if isinstance(model, peft.PeftModel) else model
    config = base.config
    prompts = random_prompts(config)
    given = {name: prompts[name] for name in ("input_points", "input_labels", "input_boxes")}
    with torch.no_grad(), forms.counted() as calls:
        output = base(random_images(config), **given)
    return (output.pred_masks, output.iou_scores, output.image_embeddings), bool(calls)


def doubled(layer):
    """Makes a linear layer return twice its output, by changing its weights."""
    with torch.no_grad():
        layer.weight.mul_(2)
        if layer.bias is not None:
            layer.bias.mul_(2)


def hooked(owner, name, layer):
    layer.register_forward_hook(lambda module, inputs, output: 2 * output)


def replaced(owner, name, layer):
    class Doubled(nn.Module):
        def __init__(self):
            super().__init__()
            self.inside = layer

        def forward(self, x):
            return 2 * self.inside(x)

    setattr(owner, name, Doubled())


def overridden(owner, name, layer):
    forward = layer.forward
    layer.forward = lambda x: 2 * forward(x)


def parametrised(owner, name, layer):
    class Twice(nn.Module):
        def forward(self, weight):
            return 2 * weight

    parametrize.register_parametrization(layer, "weight", Twice())
    if layer.bias is not None:
        parametrize.register_parametrization(layer, "bias", Twice())


def some_linears(model):
    found = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    for name, layer in found[::LINEARS]:
        owner, _, child = name.rpartition(".")
        yield model.get_submodule(owner), child, layer


@pytest.mark.parametrize("change", [hooked, replaced, overridden, parametrised])
def test_a_changed_layer_acts_wherever_it_is(change):
    model = random_model(small_config())
    expected = copy.deepcopy(model)
    for _, _, layer in some_linears(expected):
        doubled(layer)
    for place in [*some_linears(model)]:
        change(*place)
    outputs, is_fast = outputs_of(model)
    of_weights, weights_are_fast = outputs_of(expected)
    assert (is_fast, weights_are_fast) == (False, True)
    for output, other in zip(outputs, of_weights, strict=True):
        assert_close(output, other, rtol=1e-4, atol=1e-5)


def test_pruned_layers_act():
    model = random_model(small_config())
    expected = copy.deepcopy(model)
    for of_pruned, of_expected in zip([*some_linears(model)], some_linears(expected), strict=True):
        layer, other = of_pruned[-1], of_expected[-1]
        prune.l1_unstructured(layer, "weight", amount=0.5)
        with torch.no_grad():
            other.weight.copy_(layer.weight)
        # Whoever goes on from `weight_orig` prunes anew in every call.
        assert layer.weight_orig.count_nonzero() > layer.weight.count_nonzero()
    outputs, is_fast = outputs_of(model)
    assert not is_fast
    for output, other in zip(outputs, outputs_of(expected)[0], strict=True):
        assert_close(output, other, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:FSDP is switching to use `NO_SHARD`:UserWarning")
def test_sharded_layers_act(tmp_path):
    """As FSDP shards them, in a group of one process."""
    model = random_model(small_config())
    expected, _ = outputs_of(model)
    place = f"file://{tmp_path / 'group'}"
    torch.distributed.init_process_group("gloo", init_method=place, rank=0, world_size=1)
    try:
        for block in (*model.image_encoder.blocks, *model.mask_decoder.transformer.layers):
            fully_shard(block)
        fully_shard(model)
        outputs, is_fast = outputs_of(model)
        flat = FullyShardedDataParallel(
            random_model(small_config()), device_id=torch.device("cpu"), use_orig_params=False
        )
        with torch.no_grad():
            of_flat = flat(
                random_images(flat.config), input_points=random_prompts(flat.config)["input_points"]
            )
            of_whole = random_model(flat.config)(
                random_images(flat.config), input_points=random_prompts(flat.config)["input_points"]
            )
    finally:
        torch.distributed.destroy_process_group()
    assert not is_fast
    for output, other in zip(outputs, expected, strict=True):
        assert_close(output, other, rtol=1e-4, atol=1e-5)
    assert_close(of_flat.pred_masks, of_whole.pred_masks, rtol=1e-4, atol=1e-5)


class Doubling(torch.Tensor):
    """Weights that act by themselves when a layer uses them, as those of torchao do."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        output = super().__torch_function__(function, types, args, kwargs or {})
        return 2 * output.as_subclass(torch.Tensor) if function is F.linear else output


def test_weights_of_another_kind_act():
    model = random_model(small_config())
    expected = copy.deepcopy(model)
    for of_model, of_expected in zip([*some_linears(model)], some_linears(expected), strict=True):
        layer = of_model[-1]
        weight = layer.weight.detach().as_subclass(Doubling)
        layer.weight = nn.Parameter(weight, requires_grad=False)
        doubled(of_expected[-1])
    outputs, is_fast = outputs_of(model)
    assert not is_fast
    for output, other in zip(outputs, outputs_of(expected)[0], strict=True):
        assert_close(output.as_subclass(torch.Tensor), other, rtol=1e-4, atol=1e-5)


def test_a_hook_on_all_modules_sees_those_of_the_decoder():
    model = random_model(small_config())
    seen = set()
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.add(module))
    try:
        _, is_fast = outputs_of(model)
    finally:
        handle.remove()
    assert not is_fast
    assert set(model.mask_decoder.transformer.modules()) <= seen | {
        model.mask_decoder.transformer.layers
    }


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "k_proj", "v_proj", "out_proj"]])
def test_adapters_learn_everywhere_and_merge_without_a_trace(targets, dora):
    """Equal masks before and after merging, and a gradient for every adapter."""
    torch.manual_seed(0)
    base = random_model(small_config())
    before, _ = outputs_of(base)
    model = adapted(
        base, r=4, lora_alpha=8, target_modules=targets, use_dora=dora, init_lora_weights=False
    )
    prompts = random_prompts(base.config)
    output = base(
        random_images(base.config),
        input_points=prompts["input_points"],
        input_masks=prompts["input_masks"],
    )
    (output.pred_masks.square().mean() + output.iou_scores.square().mean()).backward()
    without = {
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and (parameter.grad is None or not parameter.grad.any())
    }
    # Multiple masks are asked for, so the single one's perceptron learns nothing. Adding the same
    # to the scores of all keys changes nothing: a key's bias has no gradient, but LoRA has none.
    assert {name for name in without if "output_hypernetworks_mlps.0" not in name} == set()
    outputs, is_fast = outputs_of(model)
    assert not is_fast
    assert not torch.allclose(outputs[0], before[0])
    merged, merged_is_fast = outputs_of(model.merge_and_unload())
    assert merged_is_fast
    for output, other in zip(outputs, merged, strict=True):
        assert_close(output, other, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_adapters_are_saved_loaded_taken_off_and_merged(tmp_path):
    """What peft's quick tour does: the adapter's file alone, and the merged model's."""
    torch.manual_seed(0)
    model = adapted(
        random_model(small_config()), r=4, target_modules="all-linear", init_lora_weights=False
    )
    learning, count = model.get_nb_trainable_parameters()
    assert 0 < learning < count
    outputs, _ = outputs_of(model)
    model.save_pretrained(tmp_path / "adapter")
    files = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors"} <= files
    loaded = peft.PeftModel.from_pretrained(random_model(small_config()), tmp_path / "adapter")
    plain, _ = outputs_of(random_model(small_config()))
    with loaded.disable_adapter():
        for output, other in zip(outputs_of(loaded)[0], plain, strict=True):
            assert_close(output, other, rtol=1e-4, atol=1e-5)
    for output, other in zip(outputs_of(loaded)[0], outputs, strict=True):
        assert_close(output, other, rtol=1e-4, atol=1e-5)
    for output, other in zip(outputs_of(loaded.unload())[0], plain, strict=True):
        assert_close(output, other, rtol=1e-4, atol=1e-5)
    model.merge_and_unload().save_pretrained(tmp_path / "merged")
    merged = SegmentAnythingModel.from_pretrained(tmp_path / "merged")
    for output, other in zip(outputs_of(merged)[0], outputs, strict=True):
        assert_close(output, other, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
@pytest.mark.filterwarnings("ignore:.*quantization.*:DeprecationWarning")
def test_layers_quantised_by_pytorch_act():
    model = random_model(small_config())
    exact, _ = outputs_of(model)
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    linears = sum(type(layer) is nn.Linear for layer in model.modules())
    replaced_by = [m for m in quantised.modules() if type(m).__module__.startswith("torch.ao.nn")]
    assert len([m for m in replaced_by if hasattr(m, "in_features")]) == linears > 0
    outputs, is_fast = outputs_of(quantised)
    assert not is_fast
    for output, other in zip(outputs, exact, strict=True):
        assert not torch.equal(output, other)
        assert_close(output, other, rtol=0.0, atol=0.1 * other.abs().max().item())


def test_plain_layers_are_told_from_others():
    layer, rows = nn.Linear(5, 7), torch.randn(3, 5)
    assert is_plain(layer)
    with torch.no_grad():
        assert_close(linear(layer, rows), layer(rows))
    handle = layer.register_forward_pre_hook(lambda module, inputs: None)
    assert not is_plain(layer)
    handle.remove()
    assert is_plain(layer)
    embedding = nn.Embedding(2, 3)
    assert vectors(embedding, 2) is embedding.weight
    embedding.register_forward_hook(lambda module, inputs, output: output + 1)
    assert_close(vectors(embedding, 2), embedding.weight + 1)

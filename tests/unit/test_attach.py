"""Adapters on a model: which layers they reach, and what a forward pass adds."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from abmll.adapters.attach import StdOptions, attach, detach, features
from abmll.adapters.layer import AdapterSet
from abmll.errors import AbmllError
from abmll.kernels import Variance
from abmll.kernels.noise import key_tensor
from tests.adapters import SLOTS, move
from tests.dense import relative_error
from tests.tiny import tiny_gpt2, tiny_model

IDS = torch.tensor([[1, 17, 305, 44, 9, 260], [1, 5, 77, 301, 2, 8]])
PLACES = torch.arange(6).expand(2, 6)
QUESTIONS = torch.tensor([3, 4])


def logits(model: nn.Module) -> Tensor:
    return model(IDS).logits


def drawn_logits(model: nn.Module, adapters: AdapterSet, sampler: str, key: int = 5) -> Tensor:
    with adapters.drawing(sampler, key_tensor(key), QUESTIONS, PLACES):
        return logits(model)


# -------------------- which layers


@pytest.mark.parametrize(
    ("targets", "names"),
    [
        (("q_proj", "v_proj"), {"q_proj", "v_proj"}),
        (("self_attn.k_proj",), {"k_proj"}),
        (r".*\.mlp\.(up|down)_proj", {"up_proj", "down_proj"}),
        ("all-linear", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
    ],
    ids=["names", "end of a path", "regular expression", "all-linear"],
)
@pytest.mark.parametrize("tie", [False, True])
def test_targets_name_layers_and_leave_the_output_embedding_alone(targets, names, tie):
    model = tiny_model(tie=tie)
    adapters = attach(model, targets)
    assert {path.rpartition(".")[2] for path in adapters.layers} == names
    assert len(adapters.layers) == 2 * len(names)
    assert all(model.get_submodule(path) is layer for path, layer in adapters.layers.items())
    assert [layer.index for layer in adapters.layers.values()] == list(range(len(adapters.layers)))
    assert isinstance(model.lm_head, nn.Linear)


def test_one_layer_by_its_whole_path():
    path = "model.layers.1.self_attn.q_proj"
    assert list(attach(tiny_model(), (path,)).layers) == [path]


@pytest.mark.parametrize(
    "targets", [("query",), ("q_proj", "query"), "q_proj", r"nothing.*", (), ("proj",)], ids=lambda t: str(t) or "empty"
)
def test_targets_that_match_nothing_are_an_error_that_lists_what_is_there(targets):
    model = tiny_model()
    before = list(model.modules())
    with pytest.raises(
        AbmllError, match=r"matches no linear layer.*down_proj, gate_proj, k_proj, lm_head, o_proj, q_proj"
    ):
        attach(model, targets)
    assert all(one is other for one, other in zip(model.modules(), before, strict=True))


def test_a_bad_regular_expression_is_an_error_of_the_user():
    with pytest.raises(AbmllError, match=r"'\(' is not a regular expression"):
        attach(tiny_model(), "(")


def _options(name, value):
    return {"std": StdOptions(**{name.removeprefix("std_"): value})} if name.startswith("std_") else {name: value}


@pytest.mark.parametrize(
    ("name", "value"),
    [("rank", 0), ("alpha", -1.0), ("std_init", 0.0), ("std_floor", float("nan")), ("std_relative", float("inf"))],
)
def test_numbers_that_make_no_gaussian_are_refused(name, value):
    section = "method" if name.startswith("std_") else "adapter"  # as a recipe has it
    with pytest.raises(AbmllError, match=rf"{section}\.{name} is .*positive"):
        attach(tiny_model(), **_options(name, value))


def test_std_relative_takes_each_layer_s_own_weight_std():
    model = tiny_model()
    for layer in attach(model, std=StdOptions(relative=0.01)).layers.values():
        expected = 0.01 * float(layer.base.weight.double().std())
        assert layer.task.variance.offset == pytest.approx(expected, rel=1e-5)
        assert layer.shared.variance == layer.task.variance


def test_detach_restores_the_very_same_modules():
    model = tiny_model()
    before, reference = dict(model.named_modules()), logits(model)
    adapters = attach(model, "all-linear")
    move(adapters)
    assert not torch.allclose(logits(model), reference)
    detach(model, adapters)
    after = dict(model.named_modules())
    assert list(after) == list(before)
    assert all(after[path] is module for path, module in before.items())
    assert torch.equal(logits(model), reference)


def test_attaching_changes_nothing_until_factors_move():
    model = tiny_model()
    reference = logits(model)
    adapters = attach(model)
    assert torch.equal(logits(model), reference)
    assert [p for p in model.parameters() if p.requires_grad] == [
        p for layer in adapters.layers.values() for slot in SLOTS for p in getattr(layer, slot).parameters()
    ]


@pytest.mark.parametrize("std", [StdOptions(), None])
def test_same_seed_gives_the_same_initial_means_with_and_without_stds(std):
    reference = attach(tiny_model(), seed=3).parameters("shared", "mean")
    for slot in SLOTS:
        mine = attach(tiny_model(), seed=3, std=std).parameters(slot, "mean")
        assert all(torch.equal(one, other) for one, other in zip(mine, reference, strict=True))
    other_seed = attach(tiny_model(), seed=4, std=std).parameters("shared", "mean")
    assert not torch.isclose(other_seed[1], reference[1]).any()
    assert not torch.isclose(reference[1], reference[5]).any()  # q_proj of layer 0 and of layer 1


def test_parts_split_the_factors_of_a_slot():
    adapters = attach(tiny_model())
    means, stds = adapters.parameters("task", "mean"), adapters.parameters("task", "std")
    assert {id(p) for p in (*means, *stds)} == {id(p) for p in adapters.parameters("task")}
    assert len(means) == len(stds) == 2 * len(adapters.layers)
    assert adapters.has_std
    assert not attach(tiny_model(), std=None).has_std


# -------------------- forward


def test_gpt2_s_transposed_linear_is_adapted_like_any_other():
    model = tiny_gpt2()
    adapters = attach(model, ("c_attn", "c_fc"))
    assert [features(layer.base) for layer in adapters.layers.values()] == [(96, 32), (128, 32)] * 2
    move(adapters)
    changed = logits(model)
    for layer in adapters.layers.values():  # the same weights merged into the base, O x I transposed
        layer.base.weight += layer.task.dense_mean().detach().T
    detach(model, adapters)
    torch.testing.assert_close(changed, logits(model), rtol=0, atol=1e-4 * float(changed.detach().abs().max()))


@pytest.mark.parametrize("sampler", ["mean", "weight"])
def test_bf16_base_gets_its_sum_in_float32_cast_once(sampler):
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(48, 64, bias=False)).to(torch.bfloat16).requires_grad_(False)
    adapters = attach(base, ("0",), std=StdOptions(init=0.05))
    move(adapters, size=0.1)
    assert all(p.dtype == torch.float32 for slot in SLOTS for p in adapters.parameters(slot))
    layer, x = adapters.layers["0"], torch.randn(200, 48).to(torch.bfloat16)
    with adapters.drawing(sampler, key_tensor(7)):
        y = base(x)
    added = layer.task.dense_mean() if sampler == "mean" else layer.task.dense_draw(7, 0)
    exact = layer.base(x).double() + x.double() @ added.double().T
    assert y.dtype == torch.bfloat16
    once, twice = exact.to(torch.bfloat16), layer.base(x) + (x.double() @ added.double().T).to(torch.bfloat16)
    assert float((y != twice).float().mean()) > 0.01  # casting the added term first gives another result ...
    assert float((y != once).float().mean()) < 0.002  # ... and float32 is right but for entries at a rounding edge


def peft_with_our_means(adapters: AdapterSet, targets: list[str]) -> nn.Module:
    """Stock PEFT LoRA on the same base with the task's means as its weights."""
    theirs = get_peft_model(tiny_model(), LoraConfig(r=8, lora_alpha=16, target_modules=targets))
    for path, layer in adapters.layers.items():
        lora = theirs.base_model.model.get_submodule(path)
        lora.lora_A["default"].weight.data.copy_(layer.task.mean_a)
        lora.lora_B["default"].weight.data.copy_(layer.task.mean_b)
    return theirs.eval()


@pytest.mark.parametrize("sampler", ["mean", "weight", "activation"])
def test_std_to_zero_makes_the_sampled_forward_equal_stock_peft_lora(sampler):
    targets, model = ["q_proj", "v_proj"], tiny_model()
    adapters = attach(model, targets, std=StdOptions(init=1e-12, floor=1e-12))
    with torch.no_grad():
        for layer in adapters.layers.values():
            layer.task.mean_b.normal_(generator=torch.Generator().manual_seed(layer.index))
    reference = logits(peft_with_our_means(adapters, targets))
    assert not torch.allclose(reference, logits(tiny_model()), atol=0.1)
    torch.testing.assert_close(drawn_logits(model, adapters, sampler), reference, rtol=0, atol=1e-4)


@pytest.mark.parametrize("sampler", ["weight", "activation"])
def test_a_draw_adds_noise_that_repeats_by_key_and_ends_with_the_block(sampler):
    model = tiny_model()
    adapters = attach(model, std=StdOptions(init=0.05))
    mean = logits(model)
    first = drawn_logits(model, adapters, sampler)
    assert torch.equal(drawn_logits(model, adapters, sampler), first)  # trust 21: bit-equal
    assert not torch.allclose(drawn_logits(model, adapters, sampler, key=6), first)
    assert not torch.allclose(first, mean)
    assert torch.equal(logits(model), mean)
    with pytest.raises(RuntimeError, match="inside"), adapters.drawing(sampler, key_tensor(5), QUESTIONS, PLACES):
        raise RuntimeError("inside")
    assert torch.equal(logits(model), mean)


def test_layers_of_one_draw_have_noise_of_their_own():
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16)).requires_grad_(False)
    adapters = attach(model, ("0", "1"))
    draws = [layer.task.dense_draw(9, layer.index) for layer in adapters.layers.values()]
    assert abs(float(torch.corrcoef(torch.stack(draws).flatten(1))[0, 1])) < 4 / 16


@pytest.mark.parametrize("sampler", ["mean", "weight"])
def test_trust_23_merged_and_unmerged_forward_agree(sampler):
    model = tiny_model()
    adapters = attach(model, "all-linear", std=StdOptions(init=0.02))
    move(adapters, size=0.1)
    unmerged = drawn_logits(model, adapters, sampler, key=11)
    for layer in adapters.layers.values():
        added = layer.task.dense_mean() if sampler == "mean" else layer.task.dense_draw(11, layer.index)
        layer.base.weight += added.detach()
    detach(model, adapters)
    torch.testing.assert_close(logits(model), unmerged, rtol=0, atol=1e-4 * float(unmerged.detach().abs().max()))


@pytest.mark.parametrize("sampler", ["mean", "weight", "activation"])
def test_trust_23_gradcheck_of_the_adapted_layer(sampler):
    model = nn.Sequential(nn.Linear(5, 4)).double().requires_grad_(False)
    adapters = attach(model, ("0",), rank=2, std=StdOptions(init=0.3, floor=1e-2))
    layer = adapters.layers["0"].double()
    move(adapters, size=0.2)
    x = torch.randn(2, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()

    def forward(x: Tensor, *factors: Tensor) -> Tensor:  # gradcheck nudges the very parameters of the layer
        with adapters.drawing(sampler, key_tensor(3), QUESTIONS, PLACES[:, :3]):
            return layer(x)

    moving = adapters.parameters("task", "mean" if sampler == "mean" else None)
    assert torch.autograd.gradcheck(forward, (x, *moving), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("sampler", ["mean", "weight", "activation"])
def test_theta_takes_no_part_in_a_forward_pass(sampler):
    model = tiny_model()
    adapters = attach(model, std=StdOptions(init=0.05))
    move(adapters, "task")
    before = drawn_logits(model, adapters, sampler)
    move(adapters, "shared", size=10.0)
    after = drawn_logits(model, adapters, sampler)
    assert torch.equal(before, after)
    after.square().sum().backward()
    assert all(p.grad is None for p in adapters.parameters("shared"))
    moving = adapters.parameters("task", "mean" if sampler == "mean" else None)
    assert all(p.grad is not None and p.grad.any() for p in moving)


@pytest.mark.parametrize("sampler", ["mean", "weight", "activation"])
def test_trust_24_gradient_checkpointing_redraws_the_same_noise(sampler):
    gradients, losses, passes = [], [], []
    for checkpointing in (False, True):
        model = tiny_model()
        adapters = attach(model, std=StdOptions(init=0.05))
        move(adapters)
        if checkpointing:
            model.train()  # no dropout in this model; transformers checkpoints in training mode only
            model.activation_checkpointing_enable({"use_reentrant": False})
        next(iter(adapters.layers.values())).register_forward_hook(lambda *_, again=checkpointing: passes.append(again))
        with adapters.drawing(sampler, key_tensor(5), QUESTIONS, PLACES):
            loss = logits(model).log_softmax(-1).square().mean()
            loss.backward()
        losses.append(float(loss.detach()))
        gradients.append([p.grad for p in adapters.parameters("task", "mean")])
    assert passes == [False, True, True]  # the forward pass was really run again
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    for plain, recomputed in zip(*gradients, strict=True):
        assert relative_error(recomputed, plain) < 1e-5


def test_trust_24_sdpa_and_eager_attention_agree_under_a_draw():
    results = []
    for attention in ("sdpa", "eager"):
        model = tiny_model()
        model.set_attn_implementation(attention)
        adapters = attach(model, std=StdOptions(init=0.05))
        move(adapters)
        results.append(drawn_logits(model, adapters, "weight"))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-4 * float(results[0].detach().abs().max()))


# -------------------- what is taken where nothing is said, and what is said where something is wrong


def test_adapters_are_by_default_those_of_the_paper():
    """Rank 8, alpha 16, q and v; f = sqrt(c) of docs/method.md, section 2; LoRA's scale is alpha / rank."""
    adapters = attach(tiny_model())
    assert [path.rpartition(".")[2] for path in adapters.layers] == ["q_proj", "v_proj"] * 2
    for layer in adapters.layers.values():
        for slot in (layer.shared, layer.task):
            assert slot.rank == slot.mean_b.shape[1] == slot.mean_a.shape[0] == 8
            assert slot.variance == Variance("square", 2.06e-9**0.5, 1e-6, 16 / 8)
            assert slot.has_std
    other = attach(tiny_model(), seed=0)
    pairs = zip(adapters.parameters("shared"), other.parameters("shared"), strict=True)
    assert all(torch.equal(one, two) for one, two in pairs)
    assert adapters.seed == 0
    given = attach(tiny_model(), rank=4, alpha=6.0, std=StdOptions(form="log_std", init=0.5, floor=0.25), seed=3)
    assert next(iter(given.layers.values())).task.variance == Variance("log_std", 0.5, 0.25, 1.5)
    assert given.seed == 3


def message_of(**options) -> str:
    model = options.pop("model", None) or tiny_model()
    with pytest.raises(AbmllError) as caught:
        attach(model, **options)
    return str(caught.value)


def test_what_is_there_is_said_with_an_example():
    names = "down_proj, gate_proj, k_proj, lm_head, o_proj, q_proj, up_proj, v_proj"
    there = f"Linear layers of this model are called: {names} (for example model.layers.0.self_attn.q_proj)"
    assert message_of(targets=("q_proj", "query")) == f"adapter.targets: 'query' matches no linear layer. {there}"
    assert message_of(targets="query") == f"adapter.targets: 'query' matches no linear layer. {there}"
    assert message_of(model=nn.Sequential(nn.ReLU()), targets="all-linear") == (
        "adapter.targets: 'all-linear' matches no linear layer. Linear layers of this model are called: none "
        "(for example none)"
    )
    assert message_of(targets="(").startswith("adapter.targets: '(' is not a regular expression (missing ), ")
    assert message_of(model=tiny_model(tie=True), targets=("q_proj", "lm_head")) == (
        "adapter.targets: lm_head shares its weights with the embeddings; leave it out"
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [("rank", 0), ("alpha", 0.0), ("std_init", -1.0), ("std_floor", float("inf")), ("std_relative", float("nan"))],
)
def test_a_number_that_makes_no_gaussian_is_said(name, value):
    section = "method" if name.startswith("std") else "adapter"
    assert message_of(**_options(name, value)) == f"{section}.{name} is {value!r}; it must be a positive number"


def test_std_relative_of_packed_weights_says_what_to_give_instead():
    model = nn.Sequential(nn.Linear(3, 2))
    model[0].weight = nn.Parameter(torch.zeros(2, 3, dtype=torch.int8), requires_grad=False)
    assert message_of(model=model, targets=("0",), std=StdOptions(relative=0.1)) == (
        "method.std_relative needs floating-point weights, 0 is quantised; give method.std_init"
    )
    assert attach(model, ("0",)).layers["0"].task.rank == 8


@pytest.mark.parametrize(
    ("earlier", "now"),
    [
        ({"with_std": False}, None),
        ({"with_std": True}, StdOptions()),
        ({"std_init": 0.5, "std_floor": 0.25}, StdOptions(init=0.5, floor=0.25)),
        ({"std_form": "log_std"}, StdOptions(form="log_std")),
        ({"std_relative": 0.1, "with_std": False}, None),
    ],
)
def test_earlier_keywords_work_and_name_what_takes_their_place(earlier, now):
    with pytest.warns(DeprecationWarning, match=r"attach\(.*=\) is now attach\(std=StdOptions\(.*; the old name works"):
        old = attach(tiny_model(), **earlier)
    new = attach(tiny_model(), std=now)
    for one, other in zip(old.layers.values(), new.layers.values(), strict=True):
        assert one.task.has_std == other.task.has_std
        assert now is None or one.task.variance == other.task.variance


def test_earlier_keywords_beside_what_takes_their_place_are_refused():
    model = tiny_model()
    with pytest.raises(TypeError, match=r"attach\(\) got std= and, by earlier names, std_init=; give std= alone"):
        attach(model, std_init=0.5, std=StdOptions(init=0.1))
    assert attach(model).layers, "something was attached already"

"""FlatAdamW does what torch.optim.AdamW does, or says by name that it does not: one table of cases."""

import copy
import pickle

import pytest
import torch
from torch import nn

from lgfast.optim.flat_adamw import FlatAdamW
from tests.optim.small_model import assert_same_weights, groups, small_model, train


def each_its_own(**lists):
    """Groups of one parameter each, whose settings differ."""

    def make(model):
        parameters = list(model.parameters())
        return [
            {"params": [p], **{name: values[k % len(values)] for name, values in lists.items()}}
            for k, p in enumerate(parameters)
        ]

    return make


BETAS = [(0.9, 0.999), (0.5, 0.9), (0.0, 0.99)]
SERVED = {  # groups of a model, and options
    "defaults": (lambda model: model.parameters(), {}),
    "named parameters": (lambda model: model.named_parameters(), {"lr": 1e-2}),
    "lr by group": (each_its_own(lr=[1e-2, 3e-3, 0.0]), {}),
    "betas by group": (each_its_own(betas=BETAS), {"lr": 1e-2}),
    "eps by group": (each_its_own(eps=[1e-8, 1e-3, 0.1]), {"lr": 1e-2}),
    "weight decay by group": (each_its_own(weight_decay=[0.0, 0.1, 0.5]), {"lr": 1e-2}),
    "maximize": (groups, {"lr": 1e-2, "maximize": True}),
    "maximize by group": (each_its_own(maximize=[True, False]), {"lr": 1e-2}),
    "an empty group": (lambda model: [{"params": []}, *groups(model)], {"lr": 1e-2}),
    "tensor rate": (groups, {"lr": torch.tensor(1e-2)}),
    "foreach": (groups, {"lr": 1e-2, "foreach": True}),
    "fused": (groups, {"lr": 1e-2, "fused": True}),
    "all of AdamW's switches": (
        groups,
        {"amsgrad": False, "foreach": None, "maximize": False, "capturable": False, "differentiable": False,
         "fused": None},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("make_groups", "options"), SERVED.values(), ids=SERVED.keys())
def test_trains_as_torch_adamw(make_groups, options):
    ours, plain = small_model(), small_model()
    train(ours, FlatAdamW(make_groups(ours), **options), 10)
    train(plain, torch.optim.AdamW(make_groups(plain), **options), 10)
    assert_same_weights(ours, plain)


@pytest.mark.parametrize(("make_groups", "options"), SERVED.values(), ids=SERVED.keys())
@pytest.mark.parametrize("saved_by, loaded_by", [(FlatAdamW, torch.optim.AdamW), (torch.optim.AdamW, FlatAdamW)])
def test_states_continue_both_ways(saved_by, loaded_by, make_groups, options):
    """Without gradients for some of the parameters for a while, so that their counts differ."""
    model, resumed = small_model(), small_model()
    optimizer = saved_by(make_groups(model), **options)
    train(model, optimizer, 3, frozen=(1, 2))
    train(model, optimizer, 2, first=3, frozen=(2,))
    resumed.load_state_dict(model.state_dict())
    resumed_optimizer = loaded_by(make_groups(resumed))
    resumed_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for one, its_optimizer in ((model, optimizer), (resumed, resumed_optimizer)):
        train(one, its_optimizer, 5, first=5)
    assert_same_weights(model, resumed)
    counts = [its.state[p]["step"].item() for its in (optimizer, resumed_optimizer) for p in list(its.state)]
    assert sorted(counts) == sorted([10, 7, 5, 10, 10, 10] * 2)


def test_layer_decay_makes_more_groups_than_a_table_of_16():
    def blocks():
        torch.manual_seed(0)
        return nn.Sequential(*(nn.Linear(6, 6) for _ in range(14)))

    def make_groups(model):
        return [{"params": [p], "lr": 1e-2 * 0.9**k} for k, p in enumerate(model.parameters())]

    ours, plain = blocks(), blocks()
    assert len(make_groups(ours)) == 28
    train(ours, FlatAdamW(make_groups(ours)), 5)
    train(plain, torch.optim.AdamW(make_groups(plain)), 5)
    assert_same_weights(ours, plain)


def test_parameters_without_gradient_are_not_counted():
    """The bias correction of a weight that joins late is that of its own first step."""
    ours, plain = small_model(), small_model()
    for model, kind in ((ours, FlatAdamW), (plain, torch.optim.AdamW)):
        optimizer = kind(groups(model), lr=1e-2)
        train(model, optimizer, 20, frozen=(0, 3))
        train(model, optimizer, 1, frozen=range(6))  # of nothing
        train(model, optimizer, 5, first=20)
    assert_same_weights(ours, plain)


def test_a_group_added_after_steps():
    ours, plain = small_model(), small_model()
    for model, kind in ((ours, FlatAdamW), (plain, torch.optim.AdamW)):
        optimizer = kind(model[2].parameters(), lr=1e-2)
        train(model, optimizer, 4)
        optimizer.add_param_group({"params": model[0].parameters(), "lr": 3e-3, "betas": (0.5, 0.9)})
        optimizer.add_param_group({"params": model[1].parameters()})
        train(model, optimizer, 4, first=4)
    assert_same_weights(ours, plain)


def through_pickle(pair):
    return pickle.loads(pickle.dumps(pair))


@pytest.mark.parametrize("way", [copy.deepcopy, through_pickle])
def test_copies_go_their_own_way(way):
    model, plain = small_model(), small_model()
    optimizer, reference = FlatAdamW(groups(model), lr=1e-2, max_norm=0.1), torch.optim.AdamW(groups(plain), lr=1e-2)
    train(model, optimizer, 3)
    copied, copied_optimizer = way((model, optimizer))
    assert copied_optimizer.max_norm == 0.1
    optimizer.max_norm = copied_optimizer.max_norm = 0.0
    train(copied, copied_optimizer, 3, first=3)
    weights = copy.deepcopy(copied.state_dict())
    plain.load_state_dict(model.state_dict())
    reference.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(plain, reference, 3, first=3)
    train(model, optimizer, 3, first=3)
    assert_same_weights(model, plain)
    assert_same_weights(copied, model)
    torch.testing.assert_close(copied.state_dict(), weights, rtol=0, atol=0)


def test_parameters_of_no_elements_and_of_no_dimension():
    for kind in (FlatAdamW, torch.optim.AdamW):
        empty, scalar = nn.Parameter(torch.zeros(0, 3)), nn.Parameter(torch.tensor(1.0))
        optimizer = kind([empty, scalar], lr=0.1, weight_decay=0.0)
        (empty.sum() + scalar).backward()
        optimizer.step()
        assert empty.shape == (0, 3) and scalar.item() == pytest.approx(0.9)
    FlatAdamW([{"params": []}]).step()


def test_a_gradient_of_any_strides():
    ours, plain = nn.Parameter(torch.ones(4, 6)), nn.Parameter(torch.ones(4, 6))
    for p, kind in ((ours, FlatAdamW), (plain, torch.optim.AdamW)):
        optimizer = kind([p], lr=0.1)
        p.grad = torch.arange(24.0).view(6, 4).T
        optimizer.step()
        p.grad = torch.ones(()).expand(4, 6)
        optimizer.step()
    torch.testing.assert_close(ours, plain)


# ---- refusals -------------------------------------------------------------------------------------------------------


def shared_memory():
    whole = torch.zeros(6)
    return [nn.Parameter(whole[:4]), nn.Parameter(whole[3:])]


def weights(*shape, **options):
    return nn.Parameter(torch.zeros(shape or (2,), **options))


def listed_twice():
    return [weights()] * 2


def channels_last():
    return nn.Parameter(torch.zeros(2, 3, 4, 4).to(memory_format=torch.channels_last))


REFUSED = {  # parameters, options, message
    "amsgrad": (lambda: [weights()], {"amsgrad": True}, "amsgrad=True is not supported .* use torch.optim.AdamW"),
    "differentiable": (lambda: [weights()], {"differentiable": True}, "differentiable=True is not supported"),
    "float64": (lambda: [weights(3, 2, dtype=torch.float64)], {}, r"contiguous float32 .* \[3, 2\] torch.float64"),
    "a mixture": (lambda: [weights(3), weights(2, dtype=torch.bfloat16)], {}, r"got \[2\] torch.bfloat16"),
    "transposed": (lambda: [nn.Parameter(torch.zeros(3, 2).T)], {}, r"got \[2, 3\] not contiguous torch.float32"),
    "channels last": (lambda: [channels_last()], {}, r"got \[2, 3, 4, 4\] not contiguous torch.float32"),
    "twice": (listed_twice, {}, "every parameter must have memory of its own"),
    "shared memory": (shared_memory, {}, "every parameter must have memory of its own"),
    "not initialised": (
        lambda: [nn.parameter.UninitializedParameter()], {}, "must be plain tensors, got UninitializedParameter"
    ),
    "negative lr": (lambda: [weights()], {"lr": -1.0}, "lr must be at least 0, got -1.0"),
    "negative decay": (lambda: [weights()], {"weight_decay": -0.1}, "weight_decay must be at least 0, got -0.1"),
    "eps NaN": (lambda: [weights()], {"eps": float("nan")}, "eps must be at least 0, got nan"),
    "betas": (lambda: [weights()], {"betas": (0.9, 1.0)}, r"betas must be two numbers in \[0, 1\), got \(0.9, 1.0\)"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate parameters")
@pytest.mark.parametrize(("make_parameters", "options", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_it_cannot_do_is_refused_when_it_is_made_and_when_a_group_is_added(make_parameters, options, message):
    with pytest.raises(ValueError, match=message):
        FlatAdamW(make_parameters(), **options)
    model = small_model()
    optimizer = FlatAdamW(groups(model))
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": make_parameters(), **options})
    assert len(optimizer.param_groups) == 2
    train(model, optimizer, 1)


WRONG_STATES = {  # of which optimizer, and the message
    "amsgrad": (lambda params: torch.optim.AdamW(params, amsgrad=True), "amsgrad=True is not supported"),
    "differentiable": (lambda params: torch.optim.AdamW(params, differentiable=True), "differentiable=True is not"),
    "another optimizer": (
        lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
        "group 0 has no betas, eps; load",
    ),
    "another of Adam's": (lambda params: torch.optim.Adamax(params), "must hold step, exp_avg, exp_avg_sq, got"),
}


@pytest.mark.parametrize(("make", "message"), WRONG_STATES.values(), ids=WRONG_STATES.keys())
def test_a_state_that_it_cannot_continue_is_refused_and_changes_nothing(make, message):
    other, model, same = small_model(), small_model(), small_model()
    other_optimizer = make(groups(other))
    if not other_optimizer.defaults.get("differentiable"):
        train(other, other_optimizer, 2)
    optimizer, expected = FlatAdamW(groups(model), lr=1e-2), FlatAdamW(groups(same), lr=1e-2)
    for one, its_optimizer in ((model, optimizer), (same, expected)):
        train(one, its_optimizer, 2)
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(other_optimizer.state_dict())
    for one, its_optimizer in ((model, optimizer), (same, expected)):
        train(one, its_optimizer, 2, first=2)
    torch.testing.assert_close(model.state_dict(), same.state_dict(), rtol=0, atol=0)


def test_a_state_of_other_shapes_is_refused():
    saved, wider = FlatAdamW(nn.Linear(1, 3).parameters()), nn.Linear(4, 3)
    optimizer = FlatAdamW(wider.parameters())
    with pytest.raises(ValueError, match=r"exp_avg must be \[3, 4\] like its parameter, got \[3, 1\]"):
        optimizer.load_state_dict(saved.state_dict())


def test_a_16_bit_copy_ties_it_to_its_parameters():
    model = small_model()
    optimizer = FlatAdamW(groups(model))
    optimizer.use_low_precision(torch.bfloat16)
    with pytest.raises(ValueError, match="no group can be added once a 16-bit copy is in use"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})
    with pytest.raises(TypeError, match=r"cannot be copied or pickled once .* load this one's state_dict\(\)"):
        copy.deepcopy(optimizer)


def test_a_moved_parameter_is_named():
    for move in (lambda model: model.double().float(), lambda model: setattr(model[2].bias, "data", torch.zeros(3))):
        model = small_model()
        optimizer = FlatAdamW(groups(model))
        move(model)
        with pytest.raises(RuntimeError, match="parameters were moved or cast after it was made"):
            train(model, optimizer, 1)


def test_a_sparse_gradient_is_named():
    embedding = nn.Embedding(5, 4, sparse=True)
    optimizer = FlatAdamW(embedding.parameters())
    embedding(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(RuntimeError, match="does not support sparse gradients"):
        optimizer.step()
